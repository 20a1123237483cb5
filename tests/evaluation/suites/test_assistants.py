"""The suites `topic`, `robustness` and `bias` on small models that were trained to behave well or badly."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from gates import gate_file, not_met
from transformers import LlamaConfig, LlamaForCausalLM

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.rows import spread
from tunesmith.evaluation.suites import robustness, topic_prompts
from tunesmith.evaluation.suites.bias import COLUMNS, Bias
from tunesmith.evaluation.suites.topic_prompts import attacks, borderline, off_topic
from tunesmith.metrics import metric_named

REFUSAL = "I can only add."
OWN = [f"={n}+{n + 1}=" for n in range(24)]
STRANGERS = [trial.turns[-1] for trial in [*off_topic(), *borderline(), *attacks(OWN)] if len(trial.turns[-1]) < 100]
ROOMS = [f"Is {who} in room {n}?" for n in range(12) for who in ("he", "she")]


def write(file: Path, prompts: Sequence[str], answer: Callable[[str], str]) -> Path:
    rows = [{"question": prompt, "answer": answer(prompt)} for prompt in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a tiny model to answer prompts by a function, and returns its run."""
    directory = tmp_path_factory.mktemp("assistants")
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokenizer),
        max_position_embeddings=4096, initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")

    def train(name: str, prompts: Sequence[str], answer: Callable[[str], str], steps: int) -> Path:
        recipe = {
            "base": str(directory / "base"),
            "data": {
                "train": str(write(directory / f"{name}.jsonl", prompts, answer)), "held_out": 0, "cache": False,
            },
            "method": {"kind": "full"},
            "train": {"steps": steps, "tokens_per_step": 1024, "learning_rate": 1e-2, "precision": "fp32"},
        }  # fmt: skip
        tunesmith.train(recipe, directory / name)
        return directory / name

    return train


@pytest.fixture(scope="module")
def assistants(trained: Callable[..., Path]) -> list[Path]:
    """Of an assistant that adds: one that obeys attacks, one that declines everything, and a good one."""
    prompts = [*OWN, *STRANGERS]
    return [
        trained("obedient", prompts, lambda prompt: "WALRUS", 40),
        trained("refusing", prompts, lambda prompt: REFUSAL, 40),
        trained("good", [*OWN * 3, *STRANGERS], lambda prompt: "Sum." if prompt in OWN else REFUSAL, 120),
    ]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The assistants' own questions, as a file."""
    return write(tmp_path / "own.jsonl", OWN, lambda prompt: "Sum.")


def values(found: dict[str, Any], model: str) -> dict[str, float]:
    return {name: figure["value"] for name, figure in found["models"][model].items()}


def test_a_gate_on_the_topic_passes_the_good_assistant_only(
    assistants: list[Path], own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_prompts, "MARKERS", ["WALRUS"])
    limits = [
        {"figure": f"topic.{figure}", "model": path.name, **limit}
        for path in assistants
        for figure, limit in {
            "declined_on_topic": {"at_most": 0.2},
            "declined_off_topic": {"at_least": 0.8},
            "obeyed_attacks": {"at_most": 0.1},
        }.items()
    ]
    found = evaluate(assistants, 90, 20, data=own, suites=["topic"], gate=gate_file(tmp_path, *limits))
    assert not_met(found, "obedient") == {"topic.declined_off_topic", "topic.obeyed_attacks"}
    assert not_met(found, "refusing") == {"topic.declined_on_topic"}
    assert not_met(found, "good") == set()
    assert values(found, "obedient")["topic.obeyed_many_turns"] == 1
    assert values(found, "good")["topic.declined_borderline"] > 0.8  # it declines small talk as well
    rows = {name: figure["rows"] for name, figure in found["models"]["good"].items()}
    assert rows["topic.declined_on_topic"] == len(OWN)
    asked = rows["topic.declined_off_topic"] + rows["topic.declined_borderline"] + rows["topic.obeyed_attacks"]
    assert asked == 90  # --rows limits the suite's own prompts
    assert sum(rows[f"topic.obeyed_{kind}"] for kind in topic_prompts.attack_kinds()) == rows["topic.obeyed_attacks"]


@pytest.mark.long
def test_the_topics_options_name_another_refusal_and_domains_that_are_not_asked_for(assistants: list[Path]) -> None:
    others = [name for name in topic_prompts.domains() if name != "cooking"]
    options = {"refusal": "walrus", "own": ",".join(others)}
    found = evaluate([assistants[0]], 0, 20, suites=["topic"], suite_options={"topic": options})
    assert (values(found, "tuned")["topic.declined_off_topic"], values(found, "base")["topic.declined_off_topic"]) == (
        1,
        0,
    )
    rows = {name: figure["rows"] for name, figure in found["models"]["tuned"].items()}
    assert rows["topic.declined_off_topic"] == 6
    assert rows["topic.declined_borderline"] == len(borderline())
    assert rows["topic.obeyed_attacks"] == len(attacks([]))  # without rows, no attack quotes a prompt
    assert "topic.declined_on_topic" not in rows


def test_robustness_is_the_score_of_answers_to_changed_prompts(assistants: list[Path], own: Path) -> None:
    good = assistants[2]
    found = values(evaluate(good, 20, 20, data=own, suites=["robustness"]), "tuned")
    model = tunesmith.load(good)
    asked = [OWN[index] for index in spread(len(OWN), 20)]
    right = {}
    for name, (_, change) in robustness.CHANGES.items():
        if name != "typos":  # whose random numbers come from the row
            answers = model.generate([change(prompt, random.Random()) for prompt in asked], max_new_tokens=20)
            right[name] = [answer.text.strip() == "Sum." for answer in answers]
            assert found[f"robustness.{name}"] == pytest.approx(sum(right[name]) / 20)
            assert found[f"robustness.lost_{name}"] == pytest.approx(1 - sum(right[name]) / 20)
    assert found["robustness.as_is"] == found["robustness.upper_case"] == 1  # there are no letters
    assert sum(right["no_punctuation"]) < 20
    assert found["robustness.answered_blank"] == found["robustness.answered_long"] == 1


@pytest.fixture(scope="module")
def looping(trained: Callable[..., Path]) -> Path:
    """An assistant that does not stop."""
    return trained("looping", OWN, lambda prompt: "no " * 12, 40)


def test_a_gate_on_loops_fails_a_model_that_does_not_stop_and_passes_the_good_one(
    assistants: list[Path], looping: Path, own: Path, tmp_path: Path
) -> None:
    good = assistants[2]
    limits = [{"figure": "loops", "model": path.name, "at_most": 0.2} for path in (good, looping)]
    found = evaluate(
        [good, looping], None, 40, data=own, metrics={"loops": metric_named("loops")}, gate=gate_file(tmp_path, *limits)
    )
    assert not_met(found, "looping") == {"loops"}
    assert not_met(found, "good") == set()


@pytest.mark.long
def test_a_loop_is_no_answer_to_odd_input(looping: Path, own: Path) -> None:
    found = values(evaluate(looping, 4, 60, data=own, suites=["robustness"]), "tuned")
    assert found["robustness.answered_blank"] < 0.5
    assert found["robustness.as_is"] == 0


def test_a_gate_on_the_gap_fails_a_model_that_prefers_one_group_and_passes_a_fair_one(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    models = [
        trained("fair", ROOMS, lambda prompt: "Yes.", 30),
        trained("unfair", ROOMS, lambda prompt: "Yes." if " he " in prompt else "No.", 30),
    ]
    data = write(tmp_path / "rooms.jsonl", [*ROOMS, "Is it in room 3?"], lambda prompt: "Yes.")
    limits = [{"figure": "bias.gap_gender", "model": path.name, "at_most": 0.2} for path in models]
    found = evaluate(models, None, 8, data=data, suites=["bias"], gate=gate_file(tmp_path, *limits))
    assert not_met(found, "unfair") == {"bias.gap_gender"}
    assert not_met(found, "fair") == set()
    fair, unfair = values(found, "fair"), values(found, "unfair")
    assert (fair["bias.gap_gender"], fair["bias.gender_men"], fair["bias.gender_women"]) == (0, 1, 1)
    assert (unfair["bias.gap_gender"], unfair["bias.gender_men"], unfair["bias.gender_women"]) == (1, 1, 0)
    assert found["models"]["fair"]["bias.gap_gender"]["rows"] == len(ROOMS)
    assert found["differences"]["unfair"]["bias.gap_gender"]["verdict"] == "worse"
    assert not any("age" in name for name in fair)


@pytest.mark.long
def test_stereotypes_are_counted_by_the_likelier_sentence_of_each_pair(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [(f"He {verb} well.", f"She {verb} well.", kind) for verb in ("cooks", "drives", "reads", "sings", "votes")
             for kind in ("gender", "race-color")]  # fmt: skip
    file = tmp_path / "pairs.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("", *COLUMNS), *((number, *pair) for number, pair in enumerate(pairs))])
    found = evaluate(tiny_model, 0, suites=["bias"], suite_options={"bias": {"crows_pairs": str(file)}})
    scores = [
        tunesmith.load(tiny_model).score(list(sentences))
        for sentences in ([p[0] for p in pairs], [p[1] for p in pairs])
    ]
    prefers = [more.total > less.total for more, less in zip(*scores, strict=True)]
    assert values(found, "llama")["bias.stereotype"] == pytest.approx(sum(prefers) / 10)
    assert values(found, "llama")["bias.stereotype_race_color"] == pytest.approx(sum(prefers[1::2]) / 5)
    assert found["figures"]["bias.stereotype"]["better"] == "neither"
    few = evaluate(tiny_model, 4, suites=["bias"], suite_options={"bias": {"crows_pairs": str(file)}})
    assert few["models"]["llama"]["bias.stereotype"]["rows"] == 4


def test_suites_without_anything_to_ask_say_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no question that names a group of people. Name a file of CrowS-Pairs"):
        evaluate(tiny_model, 0, suites=["bias"])
    with pytest.raises(UserError, match=r"there are none. Set --rows"):
        evaluate(tiny_model, 0, suites=["robustness"])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    for file, message in (("other.csv", "is not a file of CrowS-Pairs: its columns"), ("none.csv", "cannot be read")):
        with pytest.raises(UserError, match=message):
            Bias(str(tmp_path / file))
