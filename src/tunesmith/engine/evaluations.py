"""How often a run evaluates itself, and on which held-out rows: so that it costs at most a tenth of the training."""

from dataclasses import dataclass

import numpy as np

from tunesmith.config.train import Train
from tunesmith.data.tokens import TokenTable

SHARE = 0.1
"""The most time for all evaluations, as a share of the training's."""

FORWARD = 0.5
"""Cost of a token without gradients, as a share of its cost in training: a third if all weights are trained, half if
the backward pass computes no gradients of weights, as with a small adapter."""

MOST, MOST_ROWS = 10, 500
"""Evaluations after the first one, and rows in each, beyond which nothing is gained."""

FEWEST_ROWS = 32
"""Rows below which an evaluation says little; a short run evaluates more rarely instead, at least at both ends."""


@dataclass(frozen=True)
class Evaluations:
    """A run's evaluations: before the first step, `every` steps, and after the last one.

    Attributes:
        every: optimizer steps from one to the next.
        rows: the indices of the held-out rows, the same each time.
        tokens: in these rows.
    """

    every: int
    rows: list[int]
    tokens: int

    @classmethod
    def of(cls, train: Train, steps: int, tokens: int, held_out: TokenTable) -> "Evaluations":
        """The evaluations of a run. What `train` does not set follows from the number of tokens, not from measured
        time, so that a resumed run has the same.

        Args:
            train: may set `evaluate_every` and `evaluate_rows`.
            steps: of the run.
            tokens: that the run trains on, in all its steps.
            held_out: the held-out rows.
        """
        order = np.random.default_rng(0).permutation(len(held_out))
        cost = np.concatenate([[0], np.cumsum(held_out.lengths[order])])  # (rows + 1,) tokens of the first n rows
        affordable = tokens * SHARE / FORWARD
        most_rows = min(train.evaluate_rows or MOST_ROWS, len(order))
        if train.evaluate_every is not None:
            times = -(-steps // train.evaluate_every)
        else:
            rows = most_rows if train.evaluate_rows is not None else min(FEWEST_ROWS, most_rows)
            times = min(MOST, steps, max(1, int(affordable / max(1, cost[rows])) - 1))
        rows = most_rows
        if train.evaluate_rows is None:
            within = int(np.searchsorted(cost, affordable / (times + 1), side="right")) - 1
            rows = min(most_rows, max(FEWEST_ROWS, within))
        every = train.evaluate_every or -(-steps // times)
        return cls(every, order[:rows].tolist(), int(cost[rows]))

    def times(self, steps: int) -> int:
        """How many a run of `steps` has."""
        return self.left(0, steps)

    def left(self, step: int, steps: int) -> int:
        """How many are left after `step` of `steps`; at 0, also the one before the first step."""
        return times_left(self.every, step, steps) + (step == 0) if self.rows else 0


def times_left(every: int, step: int, steps: int) -> int:
    """How often something still happens that happens at regular steps and after the last one.

    Args:
        every: steps from one time to the next.
        step: how many steps are done.
        steps: how many there are.
    """
    return 0 if step >= steps else (steps - 1) // every - step // every + 1
