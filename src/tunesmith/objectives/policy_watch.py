"""What a run with rollouts warns of, and why it ends early: rewards that rise for a bad reason, groups without a
difference, a policy that goes too far."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tunesmith.objectives.reward_watch import RewardWatch
from tunesmith.objectives.rollouts import Phase
from tunesmith.objectives.scored import GROUPS

DEAD, PILOT = 0.5, 3
"""A run warns if at least this share of the groups of its first phases has no difference."""

WORTHWHILE = 0.05
"""The share by which larger groups must lower that, to be recommended."""


class PolicyWatch:
    """Watches the phases of a run.

    Args:
        group_size: completions of each prompt.
        max_kl: nats per token from the start, beyond which the run ends; None: it goes on.
        needs_differences: whether only prompts whose completions have different rewards are trained on.
    """

    too_far: str | None = None
    """Why the run is to end."""

    def __init__(self, group_size: int, max_kl: float | None, needs_differences: bool = True) -> None:
        self._max_kl, self._needs_differences = max_kl, needs_differences
        self._rewards = RewardWatch()
        self._dead: list[float] = []
        self._larger = next((group for group in GROUPS if group > group_size), None)
        self._dead_of_larger: list[float] = []

    def add(self, phase: Phase, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """Warn of what goes wrong, and note why the run is to end.

        Args:
            phase: the present one.
            metrics: of it.
            samples: some of its completions.
        """
        names = ("reward", "completion_tokens", "repetition", "truncated", "entropy", "kl")
        faults = self._rewards.add({name: metrics[name] for name in names if name in metrics})
        if faults:
            phase.events(
                "warning",
                message=f"The reward rises while {' and '.join(faults)}. Read the samples: what is rewarded may not be "
                "what you want. Another reward function, or a larger beta, holds the policy back.",
                samples=samples,
            )
        if self._needs_differences and "dead_groups" in metrics and phase.number < PILOT:
            self._dead.append(metrics["dead_groups"])
            if (predicted := metrics.get(f"dead_groups/{self._larger}")) is not None:
                self._dead_of_larger.append(predicted)
            if len(self._dead) == PILOT and fmean(self._dead) >= DEAD:
                phase.events("warning", message=self._dead_message())
        limit, kl = self._max_kl, metrics.get("kl")
        if limit is not None and kl is not None and kl > limit:
            self.too_far = f"the policy is {kl:.3g} nats per token from where it started, more than max_kl: {limit:g}"

    def _dead_message(self) -> str:
        predicted = fmean(self._dead_of_larger) if len(self._dead_of_larger) == PILOT else math.nan
        helps = predicted <= fmean(self._dead) - WORTHWHILE
        more = f" group_size: {self._larger} would leave about {predicted:.0%}." if helps else ""
        return (
            f"In {fmean(self._dead):.0%} of the groups so far, all completions have the same reward: they train "
            f"nothing.{more} Choose prompts that the model answers well sometimes, or a reward with more values."
        )

    def state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"rewards": self._rewards.state(), "dead": self._dead, "dead_of_larger": self._dead_of_larger}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._rewards, self._dead = RewardWatch(**state["rewards"]), state["dead"]
        self._dead_of_larger = state.get("dead_of_larger", [])  # not in checkpoints of older versions
