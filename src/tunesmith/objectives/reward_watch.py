"""Watches for rewards that rise while answers get worse: what is rewarded is then often not what is meant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

WINDOW = 5
"""Phases at the start and at the end that are compared."""

LENGTH_RATIO, MORE, KL, ENTROPY_SHARE = 1.5, 0.2, 0.5, 0.2
"""What is much: the ratio of mean lengths; the rise of a share; KL per token, in nats; what is left of the entropy."""

SIZE = 4
"""Of the n-grams whose repetition is counted."""


def repetition(tokens: Sequence[int]) -> float:
    """The share of a completion's n-grams that it has had before.

    Args:
        tokens: of the completion.
    """
    grams = [tuple(tokens[start : start + SIZE]) for start in range(len(tokens) - SIZE + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class RewardWatch:
    """Compares the latest phases with the first ones.

    Attributes:
        first: figures of the first `WINDOW` phases.
        last: figures of the latest phases, at most as many.
        warned: what has been warned of.
    """

    first: list[dict[str, float]] = field(default_factory=list)
    last: list[dict[str, float]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def add(self, figures: Mapping[str, float]) -> list[str]:
        """Take the figures of a phase.

        Args:
            figures: `reward`, `completion_tokens`, `repetition`, `truncated`, `entropy`, and `kl` if it is measured.

        Returns:
            What has gone wrong since the start while the reward has risen, each once in a run.
        """
        kept = {name: float(value) for name, value in figures.items()}
        if len(self.first) < WINDOW:
            self.first.append(kept)
            return []
        self.last = [*self.last, kept][-WINDOW:]
        if len(self.last) < WINDOW or not self._rises():
            return []
        found = {name: text for name, text in self._faults() if name not in self.warned}
        self.warned.extend(found)
        return list(found.values())

    def _rises(self) -> bool:
        """Whether the reward is higher by more than two standard errors of the difference."""
        before, now = ([each["reward"] for each in phases] for phases in (self.first, self.last))
        error = math.sqrt((variance(before) + variance(now)) / WINDOW)
        return bool(fmean(now) - fmean(before) > 2 * error)

    def _faults(self) -> list[tuple[str, str]]:
        def both(name: str) -> tuple[float, float]:
            before, now = (fmean(each[name] for each in phases) for phases in (self.first, self.last))
            return before, now

        found = []
        before, now = both("completion_tokens")
        if now > LENGTH_RATIO * before:
            found.append(("longer", f"completions get longer ({before:.0f} → {now:.0f} tokens)"))
        if now < before / LENGTH_RATIO:
            found.append(("shorter", f"completions get shorter ({before:.0f} → {now:.0f} tokens)"))
        for name, words in (("repetition", "repeat themselves"), ("truncated", "are cut more often")):
            before, now = both(name)
            if now - before > MORE:
                found.append((name, f"completions {words} ({before:.0%} → {now:.0%})"))
        before, now = both("entropy")
        if now < ENTROPY_SHARE * before:
            found.append(("entropy", f"completions become all alike (entropy {before:.2g} → {now:.2g} nats per token)"))
        if "kl" in self.last[-1] and both("kl")[1] > KL:
            found.append(("kl", f"the policy is far from where it started ({both('kl')[1]:.2g} nats per token)"))
        return found

    def state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"first": self.first, "last": self.last, "warned": self.warned}
