"""Completions that share their prompt: loss and gradients as of separate texts, and the starting model's values."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from completions import COMPLETIONS, PROMPTS, completions_batch, completions_table, log_probs_alone
from small_models import objective_of, small_model, stored_base

import tunesmith
from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.read import Row
from tunesmith.data.render import Renderer
from tunesmith.data.row_formats import to_example
from tunesmith.errors import UserError
from tunesmith.heads.reward import RewardHead
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.models.attention import branches
from tunesmith.models.forward import token_log_probs
from tunesmith.objectives.preference import completion_log_probs, length_bias, lengths_of_completions, row_pairs
from tunesmith.training.reference import FILE
from tunesmith.training.trainer import Trainer

FAMILIES = ("gpt2", "llama", "qwen3", "gemma2", "mistral", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_have_the_log_probabilities_that_they_have_alone(family: str) -> None:
    model = small_model(family)
    sums, tokens = completion_log_probs(model, completions_batch())
    torch.testing.assert_close(sums, log_probs_alone(model), rtol=1e-5, atol=1e-5)
    assert tokens.tolist() == [len(answer) for answers in COMPLETIONS for answer in answers]
    assert branches(model), f"{family} shares no prompts"


def test_gradients_are_those_of_separate_texts() -> None:
    """In float64 without norms in fp32: to the last digits."""
    model = small_model("gpt2")
    grads = []
    for sums in (completion_log_probs(model, completions_batch())[0], log_probs_of_copies(model)):
        factors = torch.linspace(-1, 2, len(sums), dtype=torch.float64)
        grads.append(torch.autograd.grad((factors * sums).sum(), list(model.parameters())))
    for ours, separate in zip(*grads, strict=True):
        torch.testing.assert_close(ours, separate, rtol=1e-9, atol=1e-9)


def log_probs_of_copies(model: Any) -> torch.Tensor:
    """As `log_probs_alone`, on the same weights and not on a copy, so that gradients arrive."""
    sums = []
    for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True):
        for answer in answers:
            table = completions_table([[0.0]], prompts=[prompt], completions=[[answer]])
            sums.append(token_log_probs(model, collate(table, [0])).sum())
    return torch.stack(sums)


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_families_that_cannot_share_get_each_completion_with_its_prompt(family: str) -> None:
    model = small_model(family)
    assert not branches(model)
    torch.testing.assert_close(
        completion_log_probs(model, completions_batch())[0], log_probs_alone(model), rtol=1e-5, atol=1e-5
    )


def test_an_encoder_rates_each_completion_with_its_prompt() -> None:
    """It reads later tokens too, so nothing is shared."""
    model = small_model("bert", RewardHead())
    ours = class_logits(model, completions_batch(with_targets=True))[:, 0]
    alone = [
        model(input_ids=torch.tensor([*prompt, *answer])[None], document_lengths=[len(prompt) + len(answer)]).logits[0]
        for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True)
        for answer in answers
    ]
    torch.testing.assert_close(ours, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_the_prompt_is_computed_once_and_a_completions_last_token_not_at_all() -> None:
    batch = completions_batch()
    documents = batch.lengths[: batch.documents]
    assert documents == [4, 2, 1, 3, 4, 2, 5, 1, 3]  # one completion is a single token: its prompt predicts it
    assert batch.parents is not None
    assert batch.parents[: batch.documents] == [-1, 0, 0, -1, 3, 3, -1, 6, 6]
    assert batch.position_ids[0, :7].tolist() == [0, 1, 2, 3, 4, 5, 4]


@pytest.mark.parametrize("kind", ["dpo", "listwise", "reward"])
def test_a_row_counts_once_whatever_is_beside_it(kind: str) -> None:
    """Accumulation is one batch: sums over single rows equal the sum over all."""
    head = RewardHead() if kind == "reward" else None
    model, objective = small_model("gpt2", head), objective_of(kind).build()
    table = completions_table(with_targets=kind == "reward")
    assert table.completions is not None
    table.completions.reference[:] = np.linspace(-9, -3, 7)
    together = objective.loss(model, collate(table, [0, 1, 2]))
    alone = [objective.loss(model, collate(table, [row])).item() for row in range(3)]
    assert together.item() == pytest.approx(sum(alone), rel=1e-9)
    assert collate(table, [0, 1, 2]).loss_tokens == 3
    losses = objective.losses(model, collate(table, [2, 0]))
    assert losses.tolist() == pytest.approx([alone[2], alone[0]], rel=1e-6)


def test_length_bias_is_how_much_more_often_the_longer_answer_is_ahead_than_better() -> None:
    answers = [[[5] * count for count in row] for row in ((3, 2), (5, 3), (6, 1, 1))]
    scores = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0, 0.0]]
    batch = collate(completions_table(scores, with_targets=True, completions=answers), [0, 1, 2])
    lengths = lengths_of_completions(batch)
    assert lengths.tolist() == [3, 2, 5, 3, 6, 1, 1]
    assert batch.completions is not None
    pairs = row_pairs(batch.completions, "all", torch.device("cpu"), with_ties=True)
    for rewards, expected in ((lengths.float(), [0, 1, 1 / 6]), (-lengths.float(), [-1, 0, -1 / 2])):
        assert pairs.mean(length_bias(pairs, rewards, lengths), 3).tolist() == pytest.approx(expected)


def pairs_file(directory: Path, count: int = 24) -> Path:
    rows = [
        {"prompt": f"Count to {number}.", "chosen": f"{number}, sir.", "rejected": f"No {'!' * (number % 5)}"}
        for number in range(count)
    ]
    file = directory / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_base(tmp_path_factory.mktemp("base"))


def recipe_of(base: Path, file: Path, **more: Any) -> dict[str, Any]:
    return {
        "base": {"path": str(base)},
        "data": {"train": [str(file)], "held_out": 0.25},
        "objective": {"kind": "dpo", "beta": 0.5},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 6, "tokens_per_step": 512, "learning_rate": 0.01, "precision": "fp32", **more},
    }


def test_a_policy_starts_at_its_reference_and_learns_the_pairs(base: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe_of(base, pairs_file(tmp_path)), tmp_path / "run")
    first, *_, last = [event for event in run.events() if event["event"] == "evaluation"]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0.0, abs=1e-5)
    assert last["loss"] < 0.6
    assert last["accuracy"] == 1.0
    assert last["accuracy_interval"][1] <= 1.0
    assert "perplexity" not in last  # the loss is of pairs
    steps = [event for event in run.events() if event["event"] == "step"]
    assert steps[-1]["margin"] > steps[0]["margin"]


class Counted:
    """Counts the batches whose reference is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tunesmith.objectives.preference import PreferenceObjective

        self.batches = 0
        own = PreferenceObjective.reference

        def reference(objective: Any, model: Any, batch: Batch) -> torch.Tensor:
            self.batches += len(batch.rows)
            return own(objective, model, batch)

        monkeypatch.setattr(PreferenceObjective, "reference", reference)


def test_reference_values_come_from_the_cache_if_rows_and_model_are_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    counted = Counted(monkeypatch)
    file = pairs_file(tmp_path)
    recipe = recipe_of(base, file)
    Trainer(recipe, tmp_path / "a").close()
    assert counted.batches == 24
    Trainer({**recipe, "method": {"kind": "lora", "rank": 2}}, tmp_path / "b").close()
    assert counted.batches == 24 + 4  # a few rows, to see that the method starts without effect
    first, second = (np.load(tmp_path / name / FILE) for name in ("a", "b"))
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    Trainer({**recipe, "method": {"kind": "prompt", "tokens": 4}}, tmp_path / "c").close()
    assert counted.batches == 24 + 4 + 4, "a prompt is compared with the base without it"
    Trainer({**recipe, "base": {**recipe["base"], "weights": "nf4"}}, tmp_path / "d").close()
    assert counted.batches == 24 + 4 + 4 + 24


def test_a_resumed_run_has_the_reference_of_its_start(base: Path, tmp_path: Path) -> None:
    file = pairs_file(tmp_path)
    whole = tunesmith.train(recipe_of(base, file), tmp_path / "whole")
    trainer = Trainer(recipe_of(base, file), tmp_path / "parts")
    for _ in range(2):
        trainer.step()
    trainer.checkpoint()
    trainer.close()
    resumed = tunesmith.resume(tmp_path / "parts")
    name = "adapter_model.safetensors"
    assert (resumed.directory / "adapter" / name).read_bytes() == (whole.directory / "adapter" / name).read_bytes()


def test_a_run_that_lost_its_reference_is_not_resumed_with_another(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = recipe_of(base, pairs_file(tmp_path))
    recipe["data"]["cache"] = False
    trainer = Trainer(recipe, tmp_path / "run")
    trainer.step()
    trainer.checkpoint()
    trainer.close()
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(UserError, match=r"reference.npz is gone.*Start the run again"):
        tunesmith.resume(tmp_path / "run")


def test_a_reward_model_rates_answers_as_in_training_and_transformers_reads_it(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, pairs_file(tmp_path), learning_rate=0.003)
    run = tunesmith.train({**recipe, "objective": {"kind": "reward"}, "method": {"kind": "full"}}, tmp_path / "run")
    *_, last = [event for event in run.events() if event["event"] == "evaluation"]
    assert last["accuracy"] == 1.0
    assert last["length_bias"] == 0.0
    model = tunesmith.load(run.directory, precision="fp32")
    good, bad = model.reward(["Count to 7."] * 2, ["7, sir.", "No !!"])
    assert good > bad
    (again,) = model.reward([{"role": "user", "content": "Count to 7."}], "7, sir.")
    assert again == pytest.approx(good, abs=1e-5)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = run.directory / "model"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "Count to 7."}, {"role": "assistant", "content": "7, sir."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory)(
        **tokenizer(text, return_tensors="pt", add_special_tokens=False)
    )
    assert theirs.logits.item() == pytest.approx(good, abs=1e-4)
    with pytest.raises(UserError, match="is no reward model"):
        tunesmith.load(str(base)).reward("a", "b")


def test_a_process_reward_is_read_at_the_end_of_each_step(base: Path, tmp_path: Path) -> None:
    values = {"prompt": "2+2+1?", "completions": ["2+2=4", "4+1=6"], "labels": [True, False]}
    example: Any = to_example(Row(values, Source("rows", 1)), "steps")
    renderer = Renderer(byte_tokenizer())
    (rendering,) = objective_of("process_reward").render(renderer, example)
    ((ids, mask),) = renderer.tokenize_many([rendering])
    ends = np.flatnonzero(mask)
    assert [renderer.tokenizer.decode(ids[: end + 1])[-5:] for end in ends] == ["2+2=4", "4+1=6"]
    assert rendering.targets == (1.0, 0.0)
    rows = [
        {"prompt": f"q{n}", "completions": ["yes", "fine" if n % 2 else "no"], "labels": [True, bool(n % 2)]}
        for n in range(24)
    ]
    (tmp_path / "steps.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = recipe_of(base, tmp_path / "steps.jsonl", learning_rate=0.003)
    run = tunesmith.train(
        {**recipe, "objective": {"kind": "process_reward"}, "method": {"kind": "full"}}, tmp_path / "run"
    )
    *_, last = [event for event in run.events() if event["event"] == "evaluation"]
    assert last["accuracy"] == 1.0
    model = tunesmith.load(run.directory, precision="fp32")
    first, second = model.step_rewards("q30", ["yes", "no"])
    assert first > 0.5 > second
    assert model.step_rewards("q30", ["yes"]) == [pytest.approx(first, abs=1e-4)]  # rated by what precedes it
    with pytest.raises(UserError, match="There are no steps"):
        model.step_rewards("q30", [])
    with pytest.raises(UserError, match="is no process reward model"):
        tunesmith.load(str(base)).step_rewards("a", ["b"])
