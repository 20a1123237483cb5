"""Any models side by side: runs, checkpoints, quantizations, exports and servers; a figure depends on nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bytewise import byte_tokenizer
from exportable import ROTARY, saved
from running_server import served
from small_gguf import bpe_tokenizer

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.subjects import SubjectName, column_names
from tunesmith.exporting.export import export
from tunesmith.report.figures import about_left_out
from tunesmith.serving.keys import add_key

Rows = list[dict[str, Any]]


def write(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`short` and `long`, two runs on the same rows; the long one has a checkpoint in its middle and one at its end."""
    directory = tmp_path_factory.mktemp("runs")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(60)]
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write(directory / "rows.jsonl", rows)), "held_out": 0.2, "cache": False},
        "method": {"kind": "lora", "rank": 8},
    }
    for name, steps in (("short", 2), ("long", 40)):
        train = {"steps": steps, "tokens_per_step": 512, "learning_rate": 1e-2, "precision": "fp32"}
        tunesmith.train(
            {**recipe, "train": {**train, "checkpoint_every": 20, "keep_checkpoints": 50}}, directory / name
        )
    return directory


def small(models: Any, **options: Any) -> dict[str, Any]:
    return evaluate(models, **{"rows": 4, "max_new_tokens": 10, **options})


@pytest.mark.long
def test_models_named_together_have_the_figures_that_each_has_alone(runs: Path, tiny_model: Path) -> None:
    found = small([tiny_model, runs / "short", runs / "long"], data=None)
    assert list(found["models"]) == ["llama", "short", "long"]
    assert found["reference"] == "llama"
    assert found["data"] == "held-out rows of short"
    for name in ("short", "long"):
        alone = small(runs / name)
        assert found["models"][name] == alone["models"]["tuned"]
        assert found["models"]["llama"] == alone["models"]["base"]
        for figure, difference in alone["differences"]["tuned"].items():
            together = found["differences"][name][figure]
            for key in ("value", "interval", "p_value", "rows"):
                assert together[key] == difference[key], (name, figure)
            assert together["adjusted_p_value"] >= difference["adjusted_p_value"], "more comparisons"
    assert found["comparisons"] == 2 * len(found["differences"]["long"])
    assert not (runs / "evaluation.json").exists()
    assert [set(sample["answers"]) for sample in found["samples"]] == [{"llama", "short", "long"}] * 4


def test_a_checkpoint_is_the_run_at_its_step(runs: Path) -> None:
    checkpoints = runs / "long" / "checkpoints"
    found = small([runs / "long", checkpoints / "step-000020", checkpoints / "step-000040"])
    assert list(found["models"]) == ["long", "long/step-000020", "long/step-000040"]
    run, middle, last = found["models"].values()
    assert run == last, "the last checkpoint has the weights that were saved"
    assert middle["loss"]["value"] > run["loss"]["value"] + 0.01
    events = tunesmith.Run.open(runs / "long").events()
    reported = {event["step"]: event["loss"] for event in events if event["event"] == "evaluation"}
    if 20 in reported:
        assert middle["loss"]["value"] == pytest.approx(reported[20], rel=1e-3)


def test_a_checkpoint_that_was_not_kept_is_refused_with_those_that_were(runs: Path) -> None:
    with pytest.raises(UserError, match=r"step-000999 does not exist\. Kept: step-0000.*train\.keep_checkpoints"):
        small([runs / "long", runs / "long" / "checkpoints" / "step-000999"])


@pytest.mark.long
def test_a_base_is_quantized_by_what_follows_the_at_sign(runs: Path) -> None:
    run = str(runs / "long")
    found = small([f"{run}@fp32", f"{run}@bf16", f"{run}@int8", f"{run}@nf4"])
    assert list(found["models"]) == ["long@fp32", "long@bf16", "long@int8", "long@nf4"]
    exact, *others = (figures["loss"]["value"] for figures in found["models"].values())
    assert exact == small(run)["models"]["tuned"]["loss"]["value"]
    assert len({exact, *others}) == 4
    assert all(other == pytest.approx(exact, rel=0.1) for other in others)


@pytest.mark.long
def test_exports_are_evaluated_beside_the_model(tmp_path: Path) -> None:
    saved(tmp_path / "model", "llama", ROTARY | {"intermediate_size": 128})  # 4-bit kernels take multiples of 64
    rows = write(tmp_path / "rows.jsonl", [{"question": f"Say {n}.", "answer": f"{n} it is."} for n in range(6)])
    forms = {"model.gguf": "gguf:f16", "in8": "int8", "in4": "nf4", "again": "hf"}
    for name, to in forms.items():
        export(str(tmp_path / "model"), tmp_path / name, to)
    found = small([tmp_path / name for name in ("model", *forms)], data=rows, max_new_tokens=3)
    assert found["data"] == "rows of rows.jsonl"
    assert list(found["models"]) == ["model", "model.gguf", "in8", "in4", "again"]
    losses = {name: figures["loss"]["value"] for name, figures in found["models"].items()}
    assert losses["again"] == losses["model"]
    assert losses["model.gguf"] == pytest.approx(losses["model"], rel=0.01), "dequantized to bf16"
    assert losses["in8"] == pytest.approx(losses["model"], rel=0.05)
    assert losses["in4"] == pytest.approx(losses["model"], rel=0.2)


def test_a_server_has_the_answers_of_the_model_that_it_serves(
    tiny_model: Path, write_rows: Callable[..., Path]
) -> None:
    with served(tiny_model) as server:
        found = small([tiny_model, f"{server.address}/v1#tiny", server.address], data=write_rows(12), rows=None)
    address = server.address.removeprefix("http://")
    local, named, first = found["models"].items()
    assert [local[0], named[0], first[0]] == ["llama", "tiny", address]
    assert "loss" in local[1]
    assert set(named[1]) == set(first[1]) == {"rouge_l", "first_word", "exact_match"}, "a server reports no loss"
    why = "a server reports no log-probabilities of given texts"
    assert found["left_out"] == {"loss of tiny": why, f"loss of {address}": why}
    for figure, difference in found["differences"]["tiny"].items():
        assert (difference["value"], difference["verdict"]) == (0, "not shown"), figure
    assert {len(set(sample["answers"].values())) for sample in found["samples"]} == {1}
    with pytest.raises(UserError, match=r"does not answer: .* Is the server running\?"):
        small([tiny_model, server.address], data=write_rows(12))


def test_what_a_server_lacks_on_raw_text_is_named_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    prose = write(tmp_path / "prose.jsonl", [{"text": f"Text {n} of something."} for n in range(8)])
    choices = write(tmp_path / "choices.jsonl", [{"question": "Which?", "choices": ["b", "c"], "answer": 0}])
    options = {"multiple_choice": {"file": str(choices)}}
    suites = ["multiple_choice", "forgetting"]
    with served(tiny_model) as server:
        models = [tiny_model, f"{server.address}/v1#tiny"]
        found = small(models, data=prose, rows=1, suites=suites, suite_options=options)
    why = "a server reports no log-probabilities of given texts"
    lacking = ("loss", "multiple_choice", "forgetting.general_loss", "forgetting.general_divergence")
    assert found["left_out"] == {f"{what} of tiny": why for what in lacking}
    assert set(found["models"]["tiny"]) == {"forgetting.general_unchanged"}
    assert about_left_out(found) == f"Left out: {', '.join(f'{what} of tiny' for what in lacking)}: {why}."


def test_a_server_alone_is_evaluated_with_the_key_from_the_environment(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add_key(tmp_path / "keys.json", "mine")
    with served(tiny_model, api_key_file=tmp_path / "keys.json") as server:
        with pytest.raises(UserError, match=r"answers 401: .* Set TUNESMITH_API_KEY to a key of the server"):
            small(server.address, data=write_rows(4))
        monkeypatch.setenv("TUNESMITH_API_KEY", key)
        found = small(server.address, data=write_rows(4))
    assert set(found["models"][server.address.removeprefix("http://")]) == {"rouge_l", "first_word", "exact_match"}
    assert found["differences"] == {}
    assert (found["rows"], found["loss_tokens"], found["generated_rows"]) == (4, None, 4)


@pytest.mark.long
def test_figures_are_the_same_to_the_bit_at_any_concurrency(runs: Path, tiny_model: Path) -> None:
    found = [
        json.dumps(small([tiny_model, runs / "long"], rows=None, concurrent=count, cache=False)) for count in (1, 7, 64)
    ]
    assert found[0] == found[1] == found[2]


def test_a_killed_evaluation_resumes_and_ends_with_the_same_figures(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.subjects.local_subject.ANSWERS", 2)
    models = [runs / "short", runs / "long"]
    whole = small(models, rows=None, cache=False, concurrent=2)

    def kill(event: dict[str, Any]) -> None:
        if event.get("what") == "long: answers" and event["done"] >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(models, rows=None, subscribers=[kill], concurrent=2)
    events: list[dict[str, Any]] = []
    again = small(models, rows=None, subscribers=[events.append], concurrent=2)
    assert again == whole
    first_done: dict[str, int] = {}
    for event in events:
        if event["event"] == "progress" and event["done"]:
            first_done.setdefault(event["what"], event["done"])
    total = whole["generated_rows"]
    assert first_done["short: answers"] == total, "nothing was left to do"
    assert 4 <= first_done["long: answers"] < total, "the answers before the kill were kept"
    events.clear()
    small(models, rows=3, subscribers=[events.append], concurrent=1)
    fewer = [event["done"] for event in events if event.get("what") == "long: answers"]
    assert fewer == [0, 3], "they are known already"


@pytest.mark.long
def test_what_else_is_asked_is_not_taken_from_the_cache(runs: Path, tmp_path: Path) -> None:
    def entries() -> int:
        return len(list((tmp_path / "cache" / "evaluation").iterdir()))

    names = [runs / "long", runs / "short"]
    small(names)
    asked = entries()
    assert asked == 4, "losses and answers of two models"
    small([*reversed(names)], rows=2, concurrent=1)
    assert entries() == asked, "the same, in another way"
    for options in ({"max_new_tokens": 5}, {"repetition_penalty": 1.5}):
        small(names, **options)
        asked += 2
        assert entries() == asked, options
    small([f"{runs / 'long'}@int8"], cache=False)
    assert entries() == asked
    small([f"{runs / 'long'}@int8"])
    assert entries() == asked + 2


@pytest.mark.long
def test_models_with_other_tokenizers_are_compared_by_their_answers_only(tiny_model: Path, tmp_path: Path) -> None:
    saved(tmp_path / "other", "llama", ROTARY)
    answer = "the other brown weather"
    assert len(bpe_tokenizer()(answer)["input_ids"]) < len(byte_tokenizer()(answer)["input_ids"])
    rows = write(tmp_path / "rows.jsonl", [{"question": f"{n}?", "answer": answer} for n in range(5)])
    found = small([tiny_model, tmp_path / "other"], data=rows)
    assert all("loss" in figures for figures in found["models"].values())
    assert "loss" not in found["differences"]["other"]
    assert {"exact_match", "bits_per_byte"} <= set(found["differences"]["other"])
    nats = found["models"]["llama"]["loss"]["value"] * found["loss_tokens"]
    assert found["models"]["llama"]["bits_per_byte"]["value"] == pytest.approx(nats / np.log(2) / (5 * len(answer)))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["a", "runs/b"], ["a", "b"]),
        (["x/a", "y/a"], ["x/a", "y/a"]),
        (["x/a", "x/a@int8"], ["a", "a@int8"]),
        (["m/q.gguf", "m/q"], ["q.gguf", "q"]),
        (["http://here:1/v1#a", "http://there:1/v1#a"], ["here:1/a", "there:1/a"]),
        (["https://here/v1", "b/here"], ["here", "b/here"]),
    ],
)
def test_columns_are_as_short_as_they_can_be(names: list[str], columns: list[str]) -> None:
    assert column_names([SubjectName.parse(name) for name in names]) == columns


def test_the_column_of_a_checkpoint_has_its_runs_name_and_what_sets_it_apart(tmp_path: Path) -> None:
    names = []
    for side in ("one", "two"):
        checkpoint = tmp_path / side / "run" / "checkpoints" / "step-000005"
        checkpoint.mkdir(parents=True)
        (checkpoint / "loop.json").touch()
        (tmp_path / side / "run" / "recipe.yaml").touch()
        names.append(SubjectName.parse(str(checkpoint)))
    assert column_names(names) == ["one/run/step-000005", "two/run/step-000005"]
    assert column_names(names[:1]) == ["run/step-000005"]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["embedded@int3"], {}, r"embedded@int3: @int3 is not one of int8, nf4, fp4, bf16, fp32, gguf:KIND"),
        (["embedded", "embedded"], {}, "embedded is given twice. Name each model once"),
        (["embedded"], {}, "There are no rows to evaluate on. Give --data FILE, or name a run"),
        ([], {}, "There is no model to evaluate"),
        (["embedded"], {"suites": ["speed"]}, "The suite speed is not known. Known: latency"),
        (["embedded"], {"data": "nothing.jsonl"}, "nothing.jsonl"),
    ],
)
def test_what_cannot_be_evaluated_is_named_in_one_line(models: list[str], options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        small(models, **options)
    assert len(str(refused.value).splitlines()) == 1


def test_models_of_different_kinds_are_not_compared(runs: Path, reading: Path) -> None:
    with pytest.raises(UserError, match="classes ends in sequence_classification, and the rows are for causal_lm"):
        small([runs / "short", reading / "classes"])
