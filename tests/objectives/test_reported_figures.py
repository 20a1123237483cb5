"""What losses of preferences, rewards and policies report beside the loss, by their definitions on given numbers."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from completions import completions_table
from small_models import objective_of, small_model
from torch import Tensor, nn

from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.models.forward import next_token_losses
from tunesmith.objectives.graded_reward import GradedRewardLoss
from tunesmith.objectives.pair_loss import pair_figures
from tunesmith.objectives.preference import ordered
from tunesmith.objectives.process_reward import ProcessRewardLoss
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.objectives.scored import Scored, samples_of
from tunesmith.ops.preference_loss import Pairs


class GivenLogits(nn.Module):
    """A classifier whose logits are its features."""

    dtype = torch.float32

    def score(self, features: Tensor) -> Tensor:
        return features


def batch_of(logits: Any, labels: Any) -> Any:
    return SimpleNamespace(features=np.array(logits, np.float32), labels=torch.tensor(labels))


MODEL: Any = GivenLogits()
SURE = 20.0
"""A logit whose probability is 1 to nine digits."""


def test_the_grade_error_is_the_mean_over_attributes_of_how_far_the_expected_grade_is() -> None:
    """Two attributes with two thresholds each; the expected grade is the sum of the probabilities of being above."""
    logits = [[SURE, SURE, -SURE, -SURE], [SURE, 0.0, SURE, -SURE]]
    labels = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    figures = GradedRewardLoss(2).figures(MODEL, batch_of(logits, labels))
    assert figures["grade_error"].tolist() == pytest.approx([(1 + 0) / 2, (0.5 + 0) / 2], abs=1e-6)
    cross_entropies = [SURE, 0, 0, 0], [0, math.log(2), 0, 0]
    assert figures["loss"].tolist() == pytest.approx([sum(row) / 4 for row in cross_entropies], abs=1e-6)


def test_a_step_counts_as_right_only_if_its_logit_is_above_0() -> None:
    figures = ProcessRewardLoss().figures(
        MODEL, batch_of([[0.0], [0.0], [1e-3], [-1e-3]], [[0.0], [1.0], [1.0], [1.0]])
    )
    assert figures["accuracy"].tolist() == [1, 0, 1, 0]


def test_a_completion_that_is_ahead_wins_and_a_tie_is_half() -> None:
    assert ordered(torch.tensor([0.5, 2.0, 0.0, -0.1])).tolist() == [1, 1, 0.5, 0]


def test_kto_reports_each_completion_by_its_side_of_the_baseline() -> None:
    """Two good completions and a bad one; the baseline is the mean of those with another prompt, here 0.2."""
    scores = (1.0, math.nan, 0.0, math.nan, 1.0)
    batch: Any = SimpleNamespace(scores=scores, reference=torch.zeros(5, dtype=torch.float64))
    ratios = torch.tensor([0.3, 0.5, 0.1, -0.1, 0.1], dtype=torch.float64)
    config = objective_of("kto", beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    figures = config.build().row_figures(ratios, torch.ones(5), batch)
    assert figures.keys() == {"loss", "accuracy", "margin", "kl"}
    assert figures["accuracy"].tolist() == [1, 1, 0]
    assert figures["margin"].tolist() == pytest.approx([0.15, -0.05, 0.05])
    assert figures["kl"].tolist() == pytest.approx([0.2] * 3)
    sides = [(2.0, 0.1), (3.0, 0.1), (2.0, -0.1)]
    expected = [weight * (1 - 1 / (1 + math.exp(-0.5 * ahead))) for weight, ahead in sides]
    assert figures["loss"].tolist() == pytest.approx(expected)


def test_listwise_reports_how_its_rewards_order_the_completions() -> None:
    """A row in order, and one of three whose pairs are right, wrong and even."""
    batch: Any = SimpleNamespace(
        scores=[1.0, 0.0, 2.0, 1.0, 0.0], per_row=[2, 3], reference=torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    )
    figures = (
        objective_of("listwise", beta=0.5)
        .build()
        .row_figures(torch.tensor([2.0, 1.5, 1.0, 3.0, 1.0]), torch.ones(5), batch)
    )
    assert figures["accuracy"].tolist() == pytest.approx([1.0, (0 + 0.5 + 1) / 3])
    assert figures["margin"].tolist() == pytest.approx([0.25, 0.5 * (-2 + 0 + 2) / 3])
    second = sum(math.log(sum(math.exp(0.5 * r) for r in rest)) - 0.5 * rest[0] for rest in ([1, 3, 1], [3, 1]))
    assert figures["loss"].tolist() == pytest.approx([math.log(1 + math.exp(-0.25)), second])


def pairs_of(**options: Any) -> dict[str, list[float]]:
    """The figures of three pairs: ahead of the reference by 3, behind it by 1, and even."""
    pairs = Pairs(
        torch.tensor([-4.0, -6.0, -8.0]), torch.tensor([-9.0, -4.0, -8.0]),
        torch.tensor([-5.0, -5.0, -8.0]), torch.tensor([-7.0, -4.0, -8.0]),
        torch.tensor([2, 3, 4]), torch.tensor([3, 4, 4]),
    )  # fmt: skip
    figures = pair_figures(objective_of("dpo", **options), pairs)
    return {name: values.tolist() for name, values in figures.items()}


def test_pairs_are_reported_by_how_far_they_are_from_the_reference() -> None:
    figures = pairs_of(beta=0.5)
    assert figures.keys() == {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"}
    assert figures["accuracy"] == [1.0, 0.0, 0.5]
    assert figures["margin"] == [1.5, -0.5, 0.0]
    assert figures["chosen_reward"] == [0.5, -0.5, 0.0]
    assert figures["rejected_reward"] == [-1.0, 0.0, 0.0]
    assert figures["loss"] == pytest.approx([math.log(1 + math.exp(-margin)) for margin in figures["margin"]])
    mixed = pairs_of(beta=0.5, sft_weight=0.2)
    assert mixed["loss"] == pytest.approx([loss + 0.2 * 2 for loss in figures["loss"]]), "nats per token"


def test_without_a_reference_pairs_are_reported_by_their_log_probability_per_token() -> None:
    figures = pairs_of(beta=0.5, loss="simpo", target_margin=0.0)
    assert figures["chosen_reward"] == [-1.0, -1.0, -1.0]
    assert figures["rejected_reward"] == [-1.5, -0.5, -1.0]
    assert figures["margin"] == [0.5, -0.5, 0.0]
    assert figures["accuracy"] == [1.0, 0.0, 0.5]


def test_notes_are_means_over_all_units_of_a_step_and_are_taken_once() -> None:
    objective = objective_of("dpo").build()
    objective.note(1, loss=torch.tensor(4.0), only=torch.tensor(2.0))
    objective.note(3, loss=torch.tensor(8.0), only=torch.tensor(0.0))
    assert objective.take_notes() == {"loss": 7.0, "only": 0.5}
    assert objective.take_notes() == {}


def test_the_best_of_n_reports_the_loss_per_token_of_what_is_kept() -> None:
    model = small_model("gpt2")
    table = completions_table()
    columns = {"weight": np.zeros(len(table.ids), np.float32)}
    for weight in (None, 0.0, 1.0):
        columns["weight"][:] = weight or 0.0
        batch = collate(replace(table, columns={} if weight is None else columns), [0, 1])
        objective = objective_of("best_of_n", rewards=["exact"]).build()
        loss = objective.loss(model, batch)
        per_token = next_token_losses(model, batch).mean().item()
        assert objective.take_notes() == {"nll_kept": pytest.approx(per_token)}
        assert loss.item() == pytest.approx(0.0 if weight == 0 else 2 * per_token)


REWARDS = np.array([[0.1, 0.9, 0.5, 0.2], [0.4, 0.4, 0.4, 0.4], [0.7, 0.0, 0.7, 0.3]])


def scored() -> Scored:
    """Three prompts with four completions each; the second prompt's are a tie."""
    asked = [f"prompt {row}" for row in range(3)]
    chats = [({"role": "user", "content": text},) for text in asked]
    prompts = [Prompt([1], asked[row], chats[row], {}, Source("prompts", row)) for row in range(3)]
    groups = [
        [Completion([row, min(index, 2)], [0.0, 0.0], f"{row}.{index}", index == 1) for index in range(4)]
        for row in range(3)
    ]
    return Scored([0, 1, 2], prompts, groups, REWARDS, {"half": REWARDS / 2}, {})


@pytest.mark.parametrize(
    ("kind", "options", "chosen"),
    [
        ("online_dpo", {}, [[1, 0], [], [2, 1]]),
        ("best_of_n", {}, [[1], [], [0]]),
        ("best_of_n", {"threshold": 0.4}, [[1, 2], [0, 1, 2], [0, 2]]),  # the last two are one text, and so one row
    ],
)
def test_of_the_samples_the_objective_keeps(kind: str, options: dict[str, Any], chosen: list[list[int]]) -> None:
    """The best and the worst of a group; or the best, or each text that reaches a threshold. None of a tie."""
    losses = objective_of(kind, rewards=["exact"], group_size=4, **options).build()
    assert losses.chosen(scored()) == chosen


def test_the_best_and_the_worst_completion_of_two_prompts_are_shown_and_the_prompts_change_with_the_phase() -> None:
    shown = samples_of(scored(), phase=2)
    assert [each["completion"] for each in shown] == ["2.2", "2.1", "0.1", "0.0"]
    assert shown[2] == {
        "source": str(Source("prompts", 0)),
        "prompt": "prompt 0",
        "completion": "0.1",
        "reward": 0.9,
        "rewards": {"half": 0.45},
        "tokens": 2,
        "truncated": True,
    }
    assert not shown[3]["truncated"]
    assert [each["completion"] for each in samples_of(scored().taken([0]), phase=5)] == ["0.1", "0.0"]
    single = Scored([0], scored().prompts[:1], [scored().groups[0][:1]], REWARDS[:1, :1], {}, {})
    assert [each["completion"] for each in samples_of(single, phase=0)] == ["0.0"]
