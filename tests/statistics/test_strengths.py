"""Agreement is Krippendorff's, strengths are Bradley & Terry's with Davidson's ties, and their intervals hold."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from tunesmith.statistics.agreement import agreement, interval, krippendorff_alpha, nominal
from tunesmith.statistics.bradley_terry import fit

OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
"""Krippendorff 2011, section D: four observers, twelve units, missing values."""


def test_alpha_is_that_of_krippendorffs_example() -> None:
    counts = np.array(
        [[[each[unit] for each in OBSERVERS].count(kind) for kind in "12345"] for unit in range(12)], float
    )
    assert krippendorff_alpha(counts, nominal(5)) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(counts, interval([1, 2, 3, 4, 5])) == pytest.approx(0.849, abs=5e-4)
    with pytest.raises(ValueError, match="no unit has two values"):
        krippendorff_alpha(np.eye(3), nominal(3))


def test_agreement_does_not_depend_on_which_answer_is_called_the_first() -> None:
    counts = np.array([[0, 0, 2], [2, 0, 0], [0, 1, 2], [1, 0, 1], [0, 2, 0], [0, 0, 3]], float)
    units = [str(unit) for unit in range(6)]
    found = agreement(counts, (0.0, 0.5, 1.0), units)
    turned = counts.copy()
    turned[[0, 2, 5]] = turned[[0, 2, 5], ::-1]
    assert found["alpha"].value == pytest.approx(agreement(turned, (0.0, 0.5, 1.0), units)["alpha"].value)
    assert found["share"].value == pytest.approx((2 + 2 + 2 + 0 + 2 + 6) / (2 + 2 + 6 + 2 + 2 + 6))
    assert found["alpha"].value < 1
    low, high = found["alpha"].estimate[1]
    assert low < found["alpha"].value < high


def test_two_models_have_the_strengths_of_their_shares() -> None:
    wins, losses, ties = 30, 12, 9
    outcomes = np.repeat([0, 1, 2], [wins, losses, ties])
    first, second = np.zeros(51, int), np.ones(51, int)
    found = fit(first, second, outcomes, np.arange(51), 2, prior=0)
    assert found.values == pytest.approx(np.array([0.5, -0.5]) * np.log(wins / losses), abs=1e-6)
    assert found.tie is not None
    assert np.exp(found.tie) == pytest.approx(ties / (wins * losses) ** 0.5)
    value, ends, p = found.estimate(np.array([1.0, -1.0]))
    half = 1.959964 * (1 / wins + 1 / losses) ** 0.5
    assert ends == pytest.approx((value - half, value + half), abs=1e-5)
    assert p == pytest.approx(0.00733, abs=1e-4)  # of 2.6807 standard errors
    swapped = fit(second, first, np.array([1, 0, 2])[outcomes], np.arange(51), 2, prior=0)
    assert swapped.values == pytest.approx(found.values)
    decided = fit(first[:42], second[:42], outcomes[:42], np.arange(42), 2)
    assert decided.tie is None
    assert decided.values[0] - decided.values[1] == pytest.approx(np.log(30.5 / 12.5), abs=1e-6)


def test_several_models_are_those_of_logistic_regression() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.integers(0, 4, (2, 400))
    first, second = first[first != second], second[first != second]
    beta = np.array([1.0, 0.4, -0.2, -1.2])
    outcomes = (draw.random(len(first)) > 1 / (1 + np.exp(beta[second] - beta[first]))).astype(int)
    found = fit(first, second, outcomes, np.arange(len(first)), 4, prior=0)
    design = (np.eye(4)[first] - np.eye(4)[second])[:, 1:]
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(design, outcomes == 0)
    assert found.values - found.values[0] == pytest.approx(np.r_[0, peer.coef_[0]], abs=1e-4)


def test_a_model_that_always_wins_has_a_finite_strength() -> None:
    found = fit(np.zeros(10, int), np.ones(10, int), np.zeros(10, int), np.arange(10), 2)
    value, (low, high), p = found.estimate(np.array([1.0, -1.0]))
    assert value == pytest.approx(np.log(10.5 / 0.5))
    assert 0 < low < 1 < 5 < high < 7
    assert 0.01 < p < 0.05


def _votes(draw: np.random.Generator, beta: np.ndarray, clusters: int, each: int, spread: float) -> list[np.ndarray]:
    """First, second, outcome and cluster of votes; those of one cluster share their models and an effect."""
    models = np.array([draw.permutation(len(beta))[:2] for _ in range(clusters)])
    cluster = np.repeat(np.arange(clusters), each)
    first, second = models[cluster].T
    difference = beta[first] - beta[second] + draw.normal(0, spread, clusters)[cluster]
    logits = np.stack([difference / 2, -difference / 2, np.full(len(cluster), -0.7)], 1)
    outcome = (draw.random((len(cluster), 1)) > np.cumsum(softmax(logits, 1), 1)[:, :2]).sum(1)
    return [first, second, outcome, cluster]


def test_intervals_hold_where_several_people_vote_on_the_same_answers() -> None:
    clusters, each, spread = 40, 3, 1.5
    draw, beta, runs = np.random.default_rng(0), np.array([0.4, -0.4]), 80
    first, second, outcome, cluster = _votes(draw, beta, 30_000, 1, spread)
    true = fit(first, second, outcome, cluster, 2).values[0]  # of an average question
    hits = naive = 0
    for _ in range(runs):
        first, second, outcome, cluster = _votes(draw, beta, clusters, each, spread)
        _, (low, high), _ = fit(first, second, outcome, cluster, 2).estimate(np.array([1.0, 0.0]))
        hits += low <= true <= high
        _, (low, high), _ = fit(first, second, outcome, np.arange(len(first)), 2).estimate(np.array([1.0, 0.0]))
        naive += low <= true <= high
    assert 0.9 <= hits / runs <= 0.99
    assert naive / runs < 0.9, "intervals that take all votes for independent are too narrow"
