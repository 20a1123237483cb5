"""Rewards that rise while answers get worse are noticed, once; rewards that rise alone are not."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from rollouts import resumed, rollouts_over

from tunesmith.objectives.policy_watch import PolicyWatch
from tunesmith.objectives.reward_watch import WINDOW, RewardWatch, repetition

GOOD = {"completion_tokens": 40.0, "repetition": 0.02, "truncated": 0.1, "entropy": 1.0, "kl": 0.01}
BAD = {
    "longer": {"completion_tokens": 90.0},
    "shorter": {"completion_tokens": 12.0},
    "repetition": {"repetition": 0.5},
    "truncated": {"truncated": 0.6},
    "entropy": {"entropy": 0.05},
    "kl": {"kl": 0.9},
}


def watched(later: dict[str, float], rise: float = 0.1, watch: RewardWatch | None = None) -> list[str]:
    """What is found over fifteen phases: the reward rises in each, and other figures change after the first ones."""
    watch = watch or RewardWatch()
    found = []
    for phase in range(3 * WINDOW):
        own = later if phase >= WINDOW else {}
        found += watch.add({"reward": 0.2 + rise * phase + 0.01 * (phase % 2), **GOOD, **own})
    return found


@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_while_the_reward_rises_is_found_once(name: str) -> None:
    assert len(watched(BAD[name])) == 1
    assert watched(BAD[name], rise=0.0) == []


def test_a_reward_that_rises_alone_is_no_reason_for_a_warning() -> None:
    assert watched({}) == []
    assert watched({"completion_tokens": 50.0, "repetition": 0.1, "truncated": 0.2, "entropy": 0.5}) == []


@pytest.mark.parametrize(
    ("name", "little", "much"),
    [
        ("completion_tokens", 59.0, 61.0),
        ("completion_tokens", 27.0, 26.0),
        ("repetition", 0.21, 0.23),
        ("truncated", 0.29, 0.31),
        ("entropy", 0.21, 0.19),
        ("kl", 0.49, 0.51),
    ],
)
def test_each_figure_has_its_limit(name: str, little: float, much: float) -> None:
    """Lengths by half of what they were, shares by 0.2, the entropy to a fifth, and half a nat per token."""
    assert watched({name: little}) == []
    assert len(watched({name: much})) == 1


def test_a_reward_has_risen_if_it_is_more_than_two_standard_errors_higher() -> None:
    """Of the difference between the first five phases and the last five, each with deviation 0.1 · √(5 / 2)."""
    noise = [-0.2, -0.1, 0.0, 0.1, 0.2]
    error = (2 * 0.025 / 5) ** 0.5
    for rise, is_found in ((1.99 * error, False), (2.01 * error, True), (-2.01 * error, False)):
        watch = RewardWatch()
        found = [watch.add({"reward": value, **GOOD}) for value in noise]
        found += [watch.add({"reward": rise + value, **GOOD, **BAD["kl"]}) for value in noise]
        assert [len(each) for each in found] == [0] * 9 + [is_found]
        assert len(watch.first) == len(watch.last) == 5
    assert watch.state() == {"first": watch.first, "last": watch.last, "warned": []}


def test_a_run_without_a_measured_distance_is_watched_too() -> None:
    watch = RewardWatch()
    good = {name: value for name, value in GOOD.items() if name != "kl"}
    found = [watch.add({"reward": 0.1 * phase, **good, **(BAD["longer"] if phase > 4 else {})}) for phase in range(12)]
    assert [len(each) for each in found] == [0] * 9 + [1, 0, 0]
    assert watch.warned == ["longer"]


def test_a_resumed_watch_goes_on() -> None:
    watch = RewardWatch()
    for phase in range(2 * WINDOW - 1):
        watch.add({"reward": 0.1 * phase, **GOOD, **(BAD["longer"] if phase >= WINDOW else {})})
    again = RewardWatch(**watch.state())
    assert len(again.add({"reward": 0.9, **GOOD, **BAD["longer"]})) == 1


def test_repetition_is_the_share_of_n_grams_that_came_before() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([1, 2]) == 0
    assert repetition([7] * 10) == pytest.approx(6 / 7)


def test_a_run_warns_with_samples_and_predicts_groups_without_a_difference(tmp_path: Any) -> None:
    """Nine in ten groups of four fail; the reward rises as answers repeat."""
    loop, events = rollouts_over(tmp_path, reward=lambda _: 0.0, steps=3, rate=0.0)
    for _ in range(3):
        loop.step()
    (warning,) = (event["message"] for event in events if event["event"] == "warning")
    assert warning.startswith("In 100% of the groups so far, all completions have the same reward")
    step = next(event for event in events if event["event"] == "step")
    assert step["dead_groups"] == 1
    samples = [event for event in events if event["event"] == "sample"]
    assert {"prompt", "completion", "reward", "source", "step"} <= set(samples[0])


def test_predicted_shares_of_groups_are_in_the_step_if_answers_succeed_or_fail(tmp_path: Any) -> None:
    first_is_odd = {"reward": lambda text: float(ord((text or "?")[0]) % 2), "prompts": 4}
    loop, events = rollouts_over(tmp_path, steps=1, rate=0.0, **first_is_odd)
    loop.step()
    step = events[-1]
    assert step["dead_groups/4"] == step["dead_groups"]
    assert step["dead_groups/2"] >= step["dead_groups/4"]
    assert step["dead_groups/8"] >= step["dead_groups/16"]
    loop, events = rollouts_over(tmp_path, steps=1, rate=0.0)  # rewards with more values
    loop.step()
    assert "dead_groups/4" not in events[-1]


def test_a_resumed_run_has_the_weight_and_the_watch_that_it_had(tmp_path: Any) -> None:
    same = {"kind": "ppo", "steps": 3, "passes": 1, "kl_target": 4.0}
    loop, _ = rollouts_over(tmp_path, **same)
    loop.step()
    loop.step()
    loop.checkpoint()
    again, _ = resumed(tmp_path, **same)
    assert again.objective.state() == loop.objective.state()
    assert again.objective.state()["kl_weight"] == pytest.approx(0.05 * 0.98**2)
    assert len(again.objective.state()["rewards"]["first"]) == 2


def messages_of(*dead: float, needs_differences: bool = True, larger: Sequence[float] = ()) -> list[str]:
    """What a run with groups of four is warned of over phases with these shares of groups without a difference.
    `larger`: what is predicted for groups of eight."""
    watch = PolicyWatch(4, None, needs_differences)
    messages: list[str] = []
    for number, share in enumerate(dead):
        phase: Any = SimpleNamespace(number=number, events=lambda _, message: messages.append(message))
        predicted = {"dead_groups/8": larger[number]} if number < len(larger) else {}
        watch.add(phase, {"reward": 0.5, "dead_groups": share, **predicted}, [])
    return messages


def test_groups_without_a_difference_are_warned_of_once_if_half_of_the_first_three_phases_groups_are_so() -> None:
    (message,) = messages_of(0.2, 0.6, 0.7, 0.9, 0.9, larger=[0.1, 0.3, 0.35])
    assert message.startswith("In 50% of the groups so far, all completions have the same reward")
    assert "group_size: 8 would leave about 25%" in message
    assert len(messages_of(0.5, 0.5, 0.5)) == 1
    (message,) = messages_of(0.5, 0.5, 0.5, larger=[0.4, 0.5, 0.48])
    assert "group_size" not in message, "too little"
    (message,) = messages_of(0.5, 0.5, 0.5, larger=[0.35, 0.5, 0.5])
    assert "group_size: 8" in message
    (message,) = messages_of(0.5, 0.5, 0.5, larger=[0.4, 0.4])
    assert "group_size" not in message, "not predicted in one phase"
    assert messages_of(0.5, 0.5, 0.49, 0.9) == []
    assert messages_of(0.9, 0.9) == [], "too early to tell"
    assert messages_of(0.9, 0.9, 0.9, needs_differences=False) == []


def test_a_group_size_beyond_all_that_are_predicted_has_no_hint() -> None:
    watch = PolicyWatch(32, None)
    messages: list[str] = []
    for number in range(3):
        phase: Any = SimpleNamespace(number=number, events=lambda _, message: messages.append(message))
        watch.add(phase, {"reward": 0.5, "dead_groups": 0.9, "dead_groups/32": 0.7}, [])
    assert len(messages) == 1
    assert "group_size" not in messages[0]


def test_phases_without_groups_are_not_warned_of() -> None:
    watch = PolicyWatch(1, None)
    for number in range(3):
        phase: Any = SimpleNamespace(number=number, events=pytest.fail)
        watch.add(phase, {"reward": 0.5}, [])
    assert watch.state()["dead"] == []


def test_what_goes_wrong_is_warned_of_with_samples_of_the_phase() -> None:
    watch, warnings = PolicyWatch(4, None, False), []
    for number in range(2 * WINDOW):
        phase: Any = SimpleNamespace(number=number, events=lambda kind, **more: warnings.append((kind, more)))
        worse = {**BAD["longer"], **BAD["entropy"]} if number >= WINDOW else {}
        watch.add(phase, {"reward": 0.1 * number, **GOOD, **worse, "more": 1.0}, [{"prompt": str(number)}])
    ((kind, more),) = warnings
    assert (kind, more["samples"]) == ("warning", [{"prompt": "9"}])
    assert more["message"].startswith(
        "The reward rises while completions get longer (40 → 90 tokens) and completions become all alike (entropy 1 → "
        "0.05 nats per token). Read the samples"
    )


def test_a_run_ends_beyond_the_distance_that_is_allowed_and_not_at_it() -> None:
    watch = PolicyWatch(4, 0.5)
    phase: Any = SimpleNamespace(number=9)
    for metrics in ({"reward": 0.5}, {"reward": 0.5, "kl": 0.5}):
        watch.add(phase, metrics, [])
        assert watch.too_far is None
    watch.add(phase, {"reward": 0.5, "kl": 0.501}, [])
    assert watch.too_far == "the policy is 0.501 nats per token from where it started, more than max_kl: 0.5"
    free = PolicyWatch(4, None)
    free.add(phase, {"reward": 0.5, "kl": 99.0}, [])
    assert free.too_far is None


def test_a_restored_watch_has_counted_the_same_groups() -> None:
    watch = PolicyWatch(4, None)
    messages: list[str] = []
    for number in range(2):
        watch.add(SimpleNamespace(number=number), {"reward": 0.5, "dead_groups": 0.6}, [])  # type: ignore[arg-type]
    again = PolicyWatch(4, None)
    again.restore(watch.state())
    assert again.state() == watch.state()
    assert again.state()["dead"] == [0.6, 0.6]
    phase: Any = SimpleNamespace(number=2, events=lambda _, message: messages.append(message))
    again.add(phase, {"reward": 0.5, "dead_groups": 0.6}, [])
    assert len(messages) == 1
