"""Completions with their rewards: what a phase has sampled, and the figures of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.objectives.reward_watch import repetition
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.ops.policy_loss import dead_share

GROUPS = (2, 4, 8, 16, 32)
"""Group sizes for which groups without a difference are predicted."""

SHOWN = 2
"""Prompts of a phase whose completions are shown."""


@dataclass(frozen=True)
class Scored:
    """Completions with everything that is known of them before advantages.

    Attributes:
        rows: the prompts, as rows of the run's table.
        prompts: what they are.
        groups: the completions of each.
        rewards: (prompts, completions); a completion to which no function applies has the mean of its group.
        parts: (prompts, completions) of each reward function, by name; NaN where it does not apply.
        noted: what the functions noted.
    """

    rows: list[int]
    prompts: list[Prompt]
    groups: list[list[Completion]]
    rewards: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]
    noted: Mapping[str, float]

    @property
    def is_dead(self) -> NDArray[np.bool_]:
        """(prompts,) whether all rewards of the group are equal, so that no completion is better than another."""
        dead: NDArray[np.bool_] = self.rewards.min(1) == self.rewards.max(1)
        return dead

    def taken(self, which: Sequence[int]) -> "Scored":
        """Those of some of the prompts."""
        at = list(which)
        return Scored(
            [self.rows[index] for index in at],
            [self.prompts[index] for index in at],
            [self.groups[index] for index in at],
            self.rewards[at],
            {name: values[at] for name, values in self.parts.items()},
            self.noted,
        )

    def with_others(self, other: "Scored") -> "Scored":
        """Both together."""
        return Scored(
            self.rows + other.rows,
            self.prompts + other.prompts,
            self.groups + other.groups,
            np.concatenate([self.rewards, other.rewards]),
            {name: np.concatenate([values, other.parts[name]]) for name, values in self.parts.items()},
            self.noted,
        )


def reward_metrics(scored: Scored) -> dict[str, Any]:
    """Of a phase: rewards, lengths, and groups without a difference."""
    each = [completion for group in scored.groups for completion in group]
    metrics: dict[str, Any] = {"reward": float(scored.rewards.mean()), "reward_std": float(scored.rewards.std())}
    for name, values in scored.parts.items():
        known = values[~np.isnan(values)]
        if len(known):
            metrics[f"rewards/{name}/mean"], metrics[f"rewards/{name}/std"] = float(known.mean()), float(known.std())
        metrics[f"rewards/{name}/none"] = 1 - len(known) / values.size
    metrics |= {
        **scored.noted,
        "completions": len(each),
        "completion_tokens": float(np.mean([len(completion.tokens) for completion in each])),
        "truncated": float(np.mean([completion.is_truncated for completion in each])),
        "repetition": float(np.mean([repetition(completion.tokens) for completion in each])),
    }
    samples = scored.rewards.shape[1]
    if samples > 1:
        metrics["dead_groups"] = float(scored.is_dead.mean())
        metrics["reward_best"] = float(scored.rewards.max(1).mean())
        best = scored.rewards.max()
        if len(np.unique(scored.rewards)) == 2:  # each completion succeeds or fails
            successes = (scored.rewards == best).sum(1).tolist()
            metrics |= {f"dead_groups/{group}": dead_share(successes, samples, group) for group in GROUPS}
    return metrics


def samples_of(scored: Scored, phase: int) -> list[dict[str, Any]]:
    """The best and the worst completion of some prompts."""
    shown = []
    for offset in range(min(SHOWN, len(scored.rows))):
        at = (phase + offset) % len(scored.rows)
        order = scored.rewards[at].argsort(kind="stable")
        for index in dict.fromkeys((int(order[-1]), int(order[0]))):
            completion = scored.groups[at][index]
            shown.append(
                {
                    "source": str(scored.prompts[at].source),
                    "prompt": scored.prompts[at].text,
                    "completion": completion.text,
                    "reward": float(scored.rewards[at, index]),
                    "rewards": {name: float(values[at, index]) for name, values in scored.parts.items()},
                    "tokens": len(completion.tokens),
                    "truncated": completion.is_truncated,
                }
            )
    return shown
