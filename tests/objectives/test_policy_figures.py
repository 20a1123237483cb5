"""What runs with rollouts report and how they lay samples out, by definition on given rewards and lengths."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rollouts import Values, rollouts_over
from small_models import objective_of

from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.objectives.completion_rows import StepTotals, column_of, lengths_of, table_of, tokens_per_row, values_of
from tunesmith.objectives.rollouts import Collected, Completion, Prompt, row_ends
from tunesmith.objectives.scored import Scored, reward_metrics
from tunesmith.ops.policy_loss import dead_share

NAN = float("nan")
REWARDS = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
PARTS = {"a": REWARDS / 2, "b": np.where(REWARDS > 0, NAN, 3.0), "c": np.full((4, 3), NAN)}


def prompt_of(row: int) -> Prompt:
    return Prompt([5] * (row + 1), "?", ({"role": "user", "content": "?"},), {}, Source("prompts", row + 1))


def scored(rewards: Any = REWARDS, parts: Any = PARTS) -> Scored:
    """Each row's prompt has one token more than the row's before; completions have one to three tokens, all equal."""
    groups = [
        [Completion([9] * (index + 1), [0.0] * (index + 1), "x", index == 2) for index in range(len(group))]
        for group in rewards
    ]
    rows = range(len(rewards))
    return Scored([4 * row for row in rows], [prompt_of(row) for row in rows], groups, rewards, parts, {"seen": 7.0})


def test_the_metrics_of_a_phase_are_their_definitions() -> None:
    metrics = reward_metrics(scored())
    assert metrics == {
        "reward": pytest.approx(7 / 12),
        "reward_std": pytest.approx(REWARDS.std()),
        "rewards/a/mean": pytest.approx(7 / 24),
        "rewards/a/std": pytest.approx(REWARDS.std() / 2),
        "rewards/a/none": 0.0,
        "rewards/b/mean": 3.0,
        "rewards/b/std": 0.0,
        "rewards/b/none": pytest.approx(7 / 12),
        "rewards/c/none": 1.0,
        "seen": 7.0,
        "completions": 12,
        "completion_tokens": 2.0,
        "truncated": pytest.approx(1 / 3),
        "repetition": 0.0,
        "dead_groups": 0.5,
        "reward_best": 0.75,
        "dead_groups/2": pytest.approx((1 / 3 + 1 + 1 / 3 + 1) / 4),
        **{f"dead_groups/{n}": dead_share([2, 0, 2, 3], 3, n) for n in (4, 8, 16, 32)},
    }
    more = reward_metrics(scored(np.array([[0.0, 0.5, 1.0]]), {}))
    assert not any(name.startswith("dead_groups/") for name in more), "rewards with more than two values"
    assert (more["dead_groups"], more["reward_best"]) == (0.0, 1.0)
    single = reward_metrics(scored(np.array([[0.0], [1.0]]), {}))
    assert "dead_groups" not in single
    assert "reward_best" not in single


def test_prompts_can_be_taken_and_joined_with_everything_that_is_known_of_them() -> None:
    both = scored().taken([2, 1]).with_others(scored().taken([0]))
    assert both.rows == [8, 4, 0]
    assert [len(prompt.ids) for prompt in both.prompts] == [3, 2, 1]
    assert [len(group) for group in both.groups] == [3, 3, 3]
    assert both.rewards.tolist() == REWARDS[[2, 1, 0]].tolist()
    assert both.parts["a"].tolist() == PARTS["a"][[2, 1, 0]].tolist()
    assert both.noted == {"seen": 7.0}
    assert both.is_dead.tolist() == [False, True, False]


# Rows


@pytest.mark.parametrize(
    ("prompt", "completions", "most", "are_compared", "ends"),
    [
        (4, [3, 3, 3], 13, False, [3]),
        (4, [3, 3, 3], 12, False, [2, 3]),
        (4, [3, 3, 3], 7, False, [1, 2, 3]),
        (4, [3, 9, 3], 7, False, [1, 2, 3]),  # a single completion may be longer
        (4, [9, 9], 7, True, [2]),
        (4, [], 7, False, []),
        (0, [2, 3], 5, False, [2]),
    ],
)
def test_completions_share_a_row_as_long_as_they_fit(
    prompt: int, completions: list[int], most: int, are_compared: bool, ends: list[int]
) -> None:
    assert list(row_ends(prompt, completions, most, are_compared)) == ends


def test_a_row_has_the_prompt_and_its_completions_with_their_rewards() -> None:
    table, owners = table_of(scored(REWARDS[:2]), 5)
    assert owners == [0, 0, 1, 1]
    assert [table[row][0].tolist() for row in range(4)] == [
        [5, 9, 9, 9],
        [5, 9, 9, 9],
        [5, 5, 9, 9, 9],
        [5, 5, 9, 9, 9],
    ]
    assert table[2][1].tolist() == [False, False, True, True, True]
    assert table.completions is not None
    assert [table.completions.of(row) for row in range(4)] == [
        ((1, 1, 2), (0.0, 1.0)),
        ((1, 3), (1.0,)),
        ((2, 1, 2), (0.0, 0.0)),
        ((2, 3), (0.0,)),
    ]
    assert [str(table.source(row)) for row in range(4)] == [str(Source("prompts", row)) for row in (1, 1, 2, 2)]
    assert lengths_of(table, [2, 1]) == [1, 2, 3]
    batch = collate(table, [0, 1, 3])
    assert tokens_per_row(batch) == [3, 3, 3]
    assert StepTotals.of(batch) == (3, 4, 9)


def test_a_row_of_some_completions_has_their_values_in_the_order_that_is_asked_for() -> None:
    which = [[2, 0], []]
    every, _ = table_of(scored(REWARDS[:2]), 100)
    some, owners = table_of(scored(REWARDS[:2]), 1, which, are_compared=True)
    assert owners == [0]
    assert some.completions is not None
    assert some.completions.of(0) == ((1, 3, 1), (1.0, 0.0))
    column = column_of(every, np.arange(1.0, 13.0, dtype=np.float32))
    assert column[~every.loss_mask].tolist() == [0.0] * 3
    assert values_of(column, every, which).tolist() == [4.0, 5.0, 6.0, 1.0]


def test_a_phase_is_restored_from_its_tensors() -> None:
    table, owners = table_of(scored(REWARDS[:2]), 5)
    table = replace(table, columns={"old": column_of(table, np.linspace(-3, 0, 12))})
    sampled = Collected(6, table, owners, [[3], [0, 2], [1]], {"reward": 1.0}, [{"prompt": "?"}])
    prompts = TokenTable.build(
        [(np.array([5], np.int32), np.array([False]), Source(file, row)) for file, row in (("a", 3), ("b", 4))]
    )
    again = Collected.restored(sampled.state(), prompts)
    assert (again.phase, again.prompts, again.updates) == (6, owners, [[3], [0, 2], [1]])
    assert [again.table.tokens_of(row)[-1] for row in range(4)] == [table.tokens_of(row)[-1] for row in range(4)]
    for name in ("ids", "loss_mask", "offsets"):
        assert getattr(again.table, name).tolist() == getattr(table, name).tolist()
    assert again.table.columns.keys() == {"old"}
    assert again.table.columns["old"].tolist() == table.columns["old"].tolist()
    assert [str(again.table.source(row)) for row in range(4)] == ["a row 3", "a row 3", "b row 4", "b row 4"]
    assert again.table.completions is not None
    assert np.isnan(again.table.completions.reference).all()


# Phases and evaluations


def of_phase(kind: str = "grpo", **options: Any) -> Any:
    return objective_of(kind, rewards=["exact"], **options).build()


def test_a_completion_without_a_reward_has_the_mean_of_its_group() -> None:
    values = np.array([1.0, NAN, 2.0, NAN, NAN, NAN])
    found = SimpleNamespace(total=values, names=("f",), values=values[:, None], noted_metrics={"n": 1.0})
    asked: list[Any] = []

    def reward(prompts: Any, completions: Any) -> Any:
        asked.append((prompts, completions))
        return found

    one = scored(np.zeros((2, 3)), {})
    result = of_phase().rewarded(SimpleNamespace(reward=reward), one.rows, one.prompts, one.groups)
    assert result.rewards.tolist() == [[1.0, 1.5, 2.0], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(result.parts["f"], values.reshape(2, 3))
    assert result.noted == {"n": 1.0}
    assert [len(prompt.ids) for prompt in asked[0][0]] == [1, 1, 1, 2, 2, 2]
    assert [len(completion.tokens) for completion in asked[0][1]] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(("passes", "minibatches"), [(1, 1), (2, 3), (1, 5)])
def test_a_prompts_rows_are_in_one_step_and_each_pass_has_all_of_them(passes: int, minibatches: int) -> None:
    """With more steps than prompts, prompts come again."""
    objective = of_phase(passes=passes, minibatches=minibatches)
    owners = [0, 0, 2, 5, 5, 5]
    orders = []
    for number in range(9):
        updates = objective._updates(SimpleNamespace(seed=1, number=number), owners)
        assert len(updates) == passes * minibatches
        for start in range(0, len(updates), minibatches):
            rows = [row for step in updates[start : start + minibatches] for row in step]
            assert set(rows) == set(range(6))
            assert len(rows) == 6 or minibatches == 5
        for step in updates:
            prompts = [owners[row] for row in step]
            assert all(prompts.count(prompt) == owners.count(prompt) for prompt in prompts)
        assert updates == objective._updates(SimpleNamespace(seed=1, number=number), owners)
        orders.append(str(updates))
    assert len(set(orders)) > 3, "the order changes with the phase"


def test_an_evaluation_reports_the_mean_reward_with_its_bootstrap_interval() -> None:
    rewards = np.array([0.0, 1.0, 1.0, 0.5, 0.25])
    groups = [[Completion([9, 9], [0.0, 0.0], "x", row == 1)] for row in range(5)]
    phase: Any = SimpleNamespace(
        rows=range(5), prompt=prompt_of, answer=lambda rows: [groups[row][0] for row in rows],
        reward=lambda prompts, completions: Values(rewards),
    )  # fmt: skip
    found = of_phase().evaluate(phase)
    means = rewards[np.random.default_rng(0).integers(0, 5, (1000, 5))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found == {
        "loss": pytest.approx(-0.55),
        "loss_interval": (pytest.approx(-high), pytest.approx(-low)),
        "reward": pytest.approx(0.55),
        "reward_interval": (pytest.approx(low), pytest.approx(high)),
        "rewards/reward/mean": pytest.approx(0.55),
        "rewards/reward/std": pytest.approx(rewards.std()),
        "rewards/reward/none": 0.0,
        "completion_tokens": 2.0,
        "truncated": pytest.approx(0.2),
        "repetition": 0.0,
    }


@pytest.mark.parametrize(
    ("kind", "options", "is_needed"),
    [
        ("grpo", {}, False),
        ("grpo", {"beta": 0.1}, True),
        ("grpo", {"max_kl": 1.0}, True),
        ("ppo", {}, True),
        ("ppo", {"kl_weight": 0}, False),
        ("ppo", {"kl_weight": 0, "max_kl": 1.0}, True),
        ("online_dpo", {}, True),
        ("online_dpo", {"loss": "simpo"}, False),
        ("online_dpo", {"loss": "simpo", "max_kl": 1.0}, True),
        ("best_of_n", {}, False),
        ("best_of_n", {"max_kl": 1.0}, True),
    ],
)
def test_the_initial_weights_are_kept_only_if_something_reads_them(
    kind: str, options: dict[str, Any], is_needed: bool
) -> None:
    plan = objective_of(kind, rewards=["exact"], group_size=4, passes=2, minibatches=3, **options).rollouts
    assert plan.keeps_initial_weights is is_needed
    assert (plan.samples, plan.passes, plan.updates) == (4, 2, 6)
    assert plan.trained == {"online_dpo": 2, "best_of_n": 1}.get(kind, 4)
    assert plan.are_compared is (kind == "online_dpo")


@pytest.mark.parametrize(
    ("kind", "max_kl", "columns"),
    [
        ("grpo", None, {"sampled", "weight", "advantage"}),
        ("grpo", 99.0, {"old", "weight", "reference", "advantage"}),
        ("ppo", 99.0, {"old", "weight", "reference", "advantage", "value", "return"}),
        ("online_dpo", 99.0, {"weight", "reference"}),
        ("best_of_n", 99.0, {"weight"}),
    ],
)
def test_a_phase_keeps_of_each_token_what_the_loss_reads_and_nothing_else(
    tmp_path: Path, kind: str, max_kl: float | None, columns: set[str]
) -> None:
    """What is kept takes memory, and is in each checkpoint."""
    loop, _ = rollouts_over(tmp_path, kind=kind, steps=1, passes=1, max_kl=max_kl)
    loop.step()
    assert loop.phases is not None
    assert loop.phases.collected is not None
    assert loop.phases.collected.table.columns.keys() == columns


def test_the_distance_to_the_start_is_reported_by_its_formula(tmp_path: Path) -> None:
    loop, events = rollouts_over(tmp_path, steps=2, rate=1e-2, max_kl=99.0)
    loop.step()
    loop.step()
    assert loop.phases is not None
    assert loop.phases.collected is not None
    table = loop.phases.collected.table
    own, start = (table.columns[name][table.loss_mask].astype(np.float64) for name in ("old", "reference"))
    first, second = (event for event in events if event["event"] == "step")
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl"] == pytest.approx(np.mean(np.exp(start - own) - (start - own) - 1), rel=1e-5)
    assert second["kl"] > 1e-4
    assert second["nll"] == pytest.approx(-own.mean(), rel=1e-5)


def test_what_ppo_reports_of_its_values_is_their_definition(tmp_path: Path) -> None:
    loop, events = rollouts_over(tmp_path, kind="ppo", steps=2, passes=1, group_size=3, rate=1e-2)
    loop.step()
    loop.step()
    assert loop.phases is not None
    assert loop.phases.collected is not None
    table = loop.phases.collected.table
    values, returns, own, start = (
        torch.from_numpy(table.columns[name][table.loss_mask]).double()
        for name in ("value", "return", "old", "reference")
    )
    first, second = (event for event in events if event["event"] == "step")
    assert first["value"] == 0, "a new value head says 0"
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert second["value"] == pytest.approx(values.mean().item(), rel=1e-5)
    unexplained = (returns - values).var() / returns.var()
    assert second["explained_variance"] == pytest.approx(1 - unexplained.item(), abs=1e-5)
    assert second["kl_completion"] == pytest.approx((own - start).sum().item() / 6, rel=1e-4)
    assert second["kl_weight"] == 0.05


@pytest.mark.parametrize(("distance", "factor"), [(0.0, 0.98), (3.6, 0.99), (4.0, 1.0), (4.4, 1.01), (99.0, 1.02)])
def test_the_weight_of_the_distance_moves_by_a_tenth_of_the_error_up_to_a_fifth(distance: float, factor: float) -> None:
    objective = of_phase("ppo", kl_weight=0.1, kl_target=4.0)
    objective._adapt(distance)
    assert objective.kl_weight == pytest.approx(0.1 * factor)
