"""Online DPO and best of n: which of the policy's own samples they learn from, and their losses by the formulas."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from completions import completions_table
from rollouts import Values, odd, rollouts_over, weights_of
from settings_coverage import shows
from small_models import objective_of, own_forward, small_model
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.batch import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.objectives.rollouts import Completion, Prompt

PROMPTS = [[5, 9, 13, 21], [7, 8, 33], [41, 9, 9, 17, 60]]
PAIRS = [[[30, 12, 6], [11, 40]], [[22, 6, 35, 50, 3], [28, 19, 44]], [[14, 2], [14, 23, 37, 8]]]
"""Of each prompt, the better and the worse completion; two begin with the same token."""


def log_probs(model: Any, temperature: float) -> list[Tensor]:
    """log p of the tokens of each completion, each with its prompt as a text of its own."""
    found = []
    for prompt, pair in zip(PROMPTS, PAIRS, strict=True):
        for answer in pair:
            ids = torch.tensor([*prompt, *answer])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] / temperature
            logs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
            found.append(logs.gather(1, ids[0, len(prompt) :, None])[:, 0])
    return found


def table_of_pairs(model: Any, temperature: float) -> tuple[TokenTable, list[Tensor]]:
    """The pairs, and the reference's log p of each token, near the model's."""
    table = completions_table([[1.0, 0.0]] * 3, prompts=PROMPTS, completions=PAIRS)
    generator = torch.Generator().manual_seed(1)
    reference = [
        (own.detach() + 0.5 * torch.randn(len(own), generator=generator, dtype=own.dtype)).float().double()
        for own in log_probs(model, temperature)
    ]
    column = np.zeros(len(table.ids), np.float32)
    column[table.loss_mask] = torch.cat(reference).float().numpy()
    return replace(table, columns={"reference": column}), reference


def of_pair(options: dict[str, Any], own: list[Tensor], reference: list[Tensor], pair: int) -> Tensor:
    """The loss of a pair."""
    beta = options.get("beta", 0.1)
    a, b = (own[index].sum() - reference[index].sum() for index in (2 * pair, 2 * pair + 1))
    up, down = (own[index].mean() for index in (2 * pair, 2 * pair + 1))
    if options.get("loss") == "hinge":
        return torch.relu(1 - beta * (a - b))
    if options.get("loss") == "simpo":
        return -logsigmoid(beta * (up - down) - options["target_margin"])
    smoothing, z = options.get("label_smoothing", 0.0), beta * (a - b)
    loss = -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)
    return loss - options.get("sft_weight", 0.0) * up


@shows(
    *(
        f"objective.online_dpo.{name}"
        for name in ("loss", "beta", "label_smoothing", "target_margin", "sft_weight", "temperature")
    )
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.4, "label_smoothing": 0.2, "sft_weight": 0.7, "temperature": 0.7},
        {"loss": "hinge", "beta": 2.0},
        {"loss": "simpo", "beta": 2.0, "target_margin": 0.9},
    ],
    ids=["default", "other", "hinge", "simpo"],
)
def test_online_dpos_loss_and_gradients_are_the_formula_on_separate_texts(options: dict[str, Any]) -> None:
    """In float64 on GPT-2; one batch, and accumulated over two."""
    model = small_model("gpt2")
    config = objective_of("online_dpo", rewards=["exact"], **options)
    plain = own_forward(model)
    table, reference = table_of_pairs(plain, config.temperature)
    own = log_probs(plain, config.temperature)
    expected = torch.stack([of_pair(options, own, reference, pair) for pair in range(3)]).mean()
    gradients = torch.autograd.grad(expected, list(plain.parameters()))
    objective = config.build()
    for batches in ([[0, 1, 2]], [[2], [0, 1]]):
        objective.begin_step(table, [0, 1, 2])
        total = sum(objective.loss(model, collate(table, rows)) for rows in batches) / 3
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert config.needs_reference == (options.get("loss") != "simpo")


@shows("objective.best_of_n.temperature")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_of_the_best_is_of_the_model_as_it_is_per_token_of_the_step(temperature: float) -> None:
    """Whatever the temperature that they were sampled at."""
    model = small_model("gpt2")
    plain = own_forward(model)
    table, _ = table_of_pairs(plain, 1.0)
    expected = -torch.cat(log_probs(plain, 1.0)).mean()
    gradients = torch.autograd.grad(expected, list(plain.parameters()))
    objective = objective_of("best_of_n", rewards=["exact"], temperature=temperature).build()
    for batches in ([[0, 1, 2]], [[2], [0, 1]]):
        objective.begin_step(table, [0, 1, 2])
        total = sum(objective.loss(model, collate(table, rows)) for rows in batches) / 3
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def phase_of(directory: Path, rewards: Sequence[Sequence[float]], **options: Any) -> tuple[Any, dict[str, Any]]:
    """A loop after the one step of a phase in which each prompt's completions have these rewards, and the step."""
    loop, events = rollouts_over(
        directory, steps=1, prompts=len(rewards), group_size=len(rewards[0]), temperature=1.5, **options
    )

    def given(prompts: Sequence[Prompt], completions: Sequence[Completion], _: int) -> Values:
        return Values(np.array([reward for group in rewards for reward in group]))

    assert loop.phases is not None
    loop.phases.reward = given
    loop.step()
    return loop, next(event for event in events if event["event"] == "step")


def rewards_of(loop: Any) -> list[tuple[float, ...]]:
    """Of the completions of each row that is trained on."""
    table = loop.phases.collected.table
    return sorted(tuple(float(score) for score in table.completions.of(row)[1]) for row in range(len(table)))


def test_the_best_and_the_worst_are_a_pair_and_ties_are_counted(tmp_path: Path) -> None:
    loop, step = phase_of(tmp_path, [[0.25, 1.0, 0.5], [2.0, 2.0, 2.0], [3.0, -1.0, -1.0]], kind="online_dpo")
    assert rewards_of(loop) == [(1.0, 0.25), (3.0, -1.0)]
    assert (step["pairs"], step["ties"]) == (2, 1)
    assert step["dead_groups"] == pytest.approx(1 / 3)
    assert step["reward_best"] == pytest.approx(2.0)
    assert step["loss"] == pytest.approx(np.log(2), rel=1e-3)  # the policy is its reference


@pytest.mark.parametrize("kind", ["online_dpo", "best_of_n"])
def test_a_phase_of_ties_alone_is_a_step_without_a_gradient(tmp_path: Path, kind: str) -> None:
    loop, step = phase_of(tmp_path, [[1.0, 1.0]] * 2, kind=kind, settings={"weight_decay": 0.0})
    assert step["grad_norm"] == 0
    assert step["loss"] == 0
    before, _ = rollouts_over(tmp_path / "new", kind=kind)
    assert torch.equal(weights_of(loop), weights_of(before))


@shows("objective.best_of_n.threshold")
def test_the_best_is_kept_or_all_that_reach_a_threshold_once(tmp_path: Path) -> None:
    rewards = [[0.25, 1.0, 0.5], [2.0, 2.0, 2.0], [0.0, -1.0, -1.0]]
    loop, step = phase_of(tmp_path / "best", rewards, kind="best_of_n")
    assert rewards_of(loop) == [(0.0,), (1.0,)]
    assert step["kept"] == 2
    loop, step = phase_of(tmp_path / "all", rewards, kind="best_of_n", threshold=0.5)
    assert rewards_of(loop) == [(1.0, 0.5), (2.0, 2.0, 2.0)]
    assert step["kept"] == 5
    loop, _ = rollouts_over(
        tmp_path / "same", reward=lambda text: 1.0, kind="best_of_n", threshold=1.0, temperature=0.01
    )
    loop.step()
    assert [len(each) for each in rewards_of(loop)] == [1, 1]  # all four are the same text


@pytest.mark.parametrize("kind", ["online_dpo", "best_of_n"])
def test_a_pair_stays_in_one_row_when_batches_are_small(tmp_path: Path, kind: str) -> None:
    found = []
    for tokens in (4096, 10):
        loop, _ = rollouts_over(
            tmp_path / str(tokens), reward=odd, kind=kind, steps=1, tokens_per_batch=tokens, rate=0.0
        )
        loop.step()
        found.append(rewards_of(loop))
    assert found[0] == found[1]
    assert {len(each) for each in found[0]} == {2 if kind == "online_dpo" else 1}
