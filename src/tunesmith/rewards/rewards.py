"""The reward functions of a recipe together: a weighted sum, and the figures of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.registry import REWARDS
from tunesmith.config.reward import RewardConfig
from tunesmith.errors import UserError
from tunesmith.rewards.calling import Caller, Noted, Sampled, opened
from tunesmith.rewards.function import RewardFunction

Floats = NDArray[np.float64]

EPSILON = 1e-4
"""Added to a standard deviation before it divides, as in TRL."""


@dataclass(frozen=True)
class RewardValues:
    """The rewards of some completions.

    Attributes:
        names: of the functions.
        weights: (functions,).
        values: (completions, functions); NaN where a function does not apply.
        noted_columns: what the functions noted of each completion, by name.
        noted_metrics: the mean of each number that they noted, by name.
    """

    names: tuple[str, ...]
    weights: Floats
    values: Floats
    noted_columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    noted_metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> Floats:
        """(completions,) the weighted sum of the functions that apply; NaN where none does."""
        return _sum(self.values * self.weights)

    def normalized_total(self, group: int) -> Floats:
        """The weighted sum after each function is normalized within a prompt's completions, so that one with a larger
        scale does not drown the others (GDPO, Liu et al. 2026, arXiv 2601.05242).

        Args:
            group: completions of each prompt, which are next to each other.

        Returns:
            (completions,); NaN where no function applies.
        """
        grouped = self.values.reshape(-1, group, self.values.shape[1])  # (prompts, group, functions)
        count = (~np.isnan(grouped)).sum(1, keepdims=True)
        mean = np.nansum(grouped, 1, keepdims=True) / np.maximum(count, 1)
        squares = np.nansum((grouped - mean) ** 2, 1, keepdims=True)
        deviation = np.sqrt(squares / np.maximum(count - 1, 1))
        return _sum(((grouped - mean) / (deviation + EPSILON)).reshape(self.values.shape) * self.weights)

    def figures(self) -> dict[str, float | None]:
        """The mean and standard deviation of the total and of each function, the share of completions to which each
        does not apply, and what the functions noted. None: of no completion.

        Returns:
            By name: `reward`, `reward_std`, `rewards/NAME/mean`, `rewards/NAME/std`, `rewards/NAME/none`.
        """
        found = dict(zip(("reward", "reward_std"), _moments(self.total), strict=True))
        for name, column in zip(self.names, self.values.T, strict=True):
            mean, deviation = _moments(column)
            none = float(np.isnan(column).mean()) if len(column) else None
            found |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": deviation, f"rewards/{name}/none": none}
        return found | dict(self.noted_metrics)


class Rewards:
    """Reward functions, opened.

    Args:
        callers: the functions.
        weights: (functions,) their factors in the sum.
    """

    def __init__(self, callers: Sequence[Caller], weights: Sequence[float]) -> None:
        self._callers, self.weights = tuple(callers), np.array(weights, np.float64)

    @classmethod
    def open(cls, configs: Sequence[RewardConfig], directory: Path | None = None) -> "Rewards":
        """Find the functions of a recipe. Models are found, and loaded at their first use.

        Args:
            configs: of the functions.
            directory: of the recipe, where a user's module is looked up first.

        Returns:
            The functions.

        Raises:
            UserError: there is none; two have the same name; one cannot be imported, has other options, or needs what
                is not there.
        """
        if not configs:
            raise UserError("rewards names no function, so there is nothing to learn from. Name one, such as exact.")
        titles = [config.title for config in configs]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice is not None:
            raise UserError(f"rewards: {twice} is there twice. Give one of them another name: {{name: …}}.")
        return cls([_caller(config, directory) for config in configs], [config.weight for config in configs])

    @property
    def names(self) -> tuple[str, ...]:
        """What the figures of each are called."""
        return tuple(caller.name for caller in self._callers)

    def __call__(self, sampled: Sampled) -> RewardValues:
        """Score completions by every function.

        Args:
            sampled: the completions.

        Returns:
            Their rewards.

        Raises:
            UserError: a function fails, takes too long, or returns something else than a number or None for each; the
                message names the function and the row.
        """
        noted = Noted()
        columns = [caller(sampled, noted) for caller in self._callers]
        values = np.array(columns, np.float64).reshape(len(self._callers), len(sampled)).T
        metrics = {name: float(np.mean(numbers)) for name, numbers in noted.metrics.items()}
        return RewardValues(self.names, self.weights, values, noted.columns, metrics)

    def close(self) -> None:
        """Free the models that the functions hold."""
        for caller in self._callers:
            if isinstance(caller.function, RewardFunction):
                caller.function.close()


def _caller(config: RewardConfig, directory: Path | None) -> Caller:
    is_users = REWARDS.is_users(config.function)
    function: Any = (
        opened(config.function, REWARDS.load(config.function, directory), config.options)
        if is_users
        else config.shipped()
    )
    if isinstance(function, RewardFunction):
        try:
            function.check()
        except UserError as error:
            raise UserError(f"rewards: {config.function}: {error}") from None
    path = REWARDS.path(config.function) if is_users else config.function
    return Caller(config.title, path, function, config.timeout)


def _sum(weighted: Floats) -> Floats:
    """(completions,) of (completions, functions), without NaN; NaN where all are."""
    return np.where(np.isnan(weighted).all(1), np.nan, np.nansum(weighted, 1))


def _moments(values: Floats) -> tuple[float | None, float | None]:
    """The mean and the standard deviation (Bessel's) of what is no NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0
