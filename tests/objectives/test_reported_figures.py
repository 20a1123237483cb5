"""What losses of preferences, rewards and policies report beside the loss, by their definitions on given numbers."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import objective_of
from torch import Tensor, nn

from tunesmith.data.example import Source
from tunesmith.objectives.graded_reward import GradedRewardLoss
from tunesmith.objectives.preference import ordered
from tunesmith.objectives.process_reward import ProcessRewardLoss
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.objectives.scored import Scored, samples_of


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
