"""Strengths of models from votes on pairs: Bradley & Terry (1952), with ties by Davidson (1970).

P(i beats j) = π_i / N, P(j beats i) = π_j / N, P(tie) = ν √(π_i π_j) / N with N = π_i + π_j + ν √(π_i π_j); strengths
are β = log π.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax, stdtr, stdtrit

from tunesmith.statistics.bootstrap import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINS = np.array([0.5, -0.5, 0.0])
"""What a win of the first, of the second, and a tie count for the difference of their strengths."""


@dataclass(frozen=True)
class Strengths:
    """Strengths of models that votes connect.

    Attributes:
        values: (models,) β = log π, of mean 0.
        tie: log ν; None: no vote was a tie.
        by_model: (models, models) covariance of the values by the model: the inverse of the Hessian.
        by_clusters: (models, models) covariance by what clusters of votes really differ; None: each vote is alone in
            its own.
        clusters: how many there are.
    """

    values: Floats
    tie: float | None
    by_model: Floats
    by_clusters: Floats | None
    clusters: int

    def estimate(self, weights: Floats) -> tuple[float, Interval, float]:
        """A linear combination of strengths, such as one, or the difference of two.

        Args:
            weights: (models,).

        Returns:
            The value, its 95 % interval, and the two-sided p-value of 0.
        """
        value, variance = float(weights @ self.values), float(weights @ self.by_model @ weights)
        freedom = np.inf
        if self.by_clusters is not None:
            variance = max(variance, float(weights @ self.by_clusters @ weights))
            freedom = max(1, self.clusters - 1)
        error = variance**0.5
        half = float(stdtrit(freedom, 0.975)) * error
        return value, (value - half, value + half), 2 * float(stdtr(freedom, -abs(value) / error))


def fit(first: Ints, second: Ints, outcomes: Ints, clusters: Ints, models: int, prior: float = 1.0) -> Strengths:
    """Fit strengths by maximum likelihood, with a weak prior that keeps them finite.

    The prior is half a vote for a parameter on each side, spread evenly over the pairs of models that have votes: with
    two models, Haldane's and Anscombe's half win each. Votes of one cluster may depend on each other, as several
    people's on the same answers do (Liang & Zeger 1986); the larger of both variances counts.

    Args:
        first, second: (votes,) the models of a vote.
        outcomes: (votes,) 0: the first is better, 1: the second, 2: neither.
        clusters: (votes,) what a vote belongs to, such as its question.
        models: how many there are; votes connect all of them.
        prior: a factor of the prior; 0: plain maximum likelihood.

    Returns:
        The strengths.
    """
    swapped = first > second
    ordered = np.stack([np.where(swapped, second, first), np.where(swapped, first, second)], 1)
    pairs, pair_of = np.unique(ordered, axis=0, return_inverse=True)
    pair_of, outcomes = pair_of.reshape(-1), np.where(swapped, np.array([1, 0, 2])[outcomes], outcomes)
    counts = np.zeros((len(pairs), 3))
    np.add.at(counts, (pair_of, outcomes), 1.0)
    has_ties = bool(counts[:, 2].any())
    counts[:, :2] += prior * 0.5 * (models - 1) / len(pairs)
    likelihood = _Likelihood(pairs, counts, models, has_ties)
    parameters = minimize(
        likelihood.loss, np.zeros(models - 1 + has_ties), jac=likelihood.gradient, hess=likelihood.hessian,
        method="trust-exact", options={"gtol": 1e-8},
    ).x  # fmt: skip
    inverse: Floats = np.linalg.inv(likelihood.hessian(parameters)).astype(np.float64)
    group_of = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    groups = int(group_of.max()) + 1
    sandwich = None
    if 1 < groups < len(outcomes):
        sums = np.zeros((groups, len(parameters)))
        np.add.at(sums, group_of, likelihood.scores(parameters, pair_of, outcomes))
        sandwich = inverse @ (sums.T @ sums) @ inverse * groups / (groups - 1)
    center = np.eye(models)[:, 1:] - 1 / models  # from a first strength of 0 to a mean of 0

    def centered(covariance: Floats) -> Floats:
        return np.asarray(center @ covariance[: models - 1, : models - 1] @ center.T)

    return Strengths(
        center @ parameters[: models - 1],
        float(parameters[-1]) if has_ties else None,
        centered(inverse),
        None if sandwich is None else centered(sandwich),
        groups,
    )


class _Likelihood:
    """Of the strengths without the first one, which is 0, and of log ν if there are ties.

    Args:
        pairs: (pairs, 2) models that are compared.
        counts: (pairs, 3) how often which outcome occurred.
        models: how many there are.
        has_ties: whether ties occur.
    """

    def __init__(self, pairs: Ints, counts: Floats, models: int, has_ties: bool) -> None:
        self._counts, self._totals, self._has_ties = counts, counts.sum(1), has_ties
        design = np.eye(models)[pairs[:, 0]] - np.eye(models)[pairs[:, 1]]
        self._design = design[:, 1:]

    def chances(self, parameters: Floats) -> Floats:
        """(pairs, 3) of the outcomes."""
        logits = np.outer(self._design @ parameters[: self._design.shape[1]], WINS)
        logits[:, 2] = parameters[-1] if self._has_ties else -np.inf
        return np.asarray(softmax(logits, 1))

    def loss(self, parameters: Floats) -> float:
        """Minus the log-likelihood."""
        return -float((self._counts * np.log(np.maximum(self.chances(parameters), 1e-300))).sum())

    def gradient(self, parameters: Floats) -> Floats:
        """Of the loss (parameters,)."""
        residuals = self._counts - self._totals[:, None] * self.chances(parameters)
        return np.asarray(-self._statistics(np.arange(len(residuals)), residuals).sum(0))

    def scores(self, parameters: Floats, pair_of: Ints, outcomes: Ints) -> Floats:
        """(votes, parameters): the gradient of each vote's log-likelihood."""
        return self._statistics(pair_of, np.eye(3)[outcomes] - self.chances(parameters)[pair_of])

    def hessian(self, parameters: Floats) -> Floats:
        """Of the loss (parameters, parameters)."""
        expected = self.chances(parameters)
        wins, ties = expected @ WINS, expected[:, 2]
        of_wins = self._totals * (expected @ np.square(WINS) - np.square(wins))
        found = self._design.T @ (self._design * of_wins[:, None])
        if not self._has_ties:
            return np.asarray(found)
        both = self._design.T @ (-self._totals * wins * ties)
        return np.asarray(np.block([[found, both[:, None]], [both[None], (self._totals * ties * (1 - ties)).sum()]]))

    def _statistics(self, pairs: Ints, outcomes: Floats) -> Floats:
        """(rows, parameters): what outcomes (rows, 3) of pairs (rows,) count for each parameter."""
        wins = self._design[pairs] * (outcomes @ WINS)[:, None]
        return np.asarray(np.concatenate([wins, outcomes[:, 2:]], 1) if self._has_ties else wins)
