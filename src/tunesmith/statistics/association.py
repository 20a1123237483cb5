"""How strongly two properties of rows go together: normalized pointwise mutual information (Bouma 2009)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 4_000
"""Of the posterior, for an interval."""


@dataclass(frozen=True, slots=True)
class Association:
    """How two properties go together.

    Attributes:
        npmi: −1 if never, 0 if independent, 1 if always.
        interval: 95 % of it.
        p_value: of independence: Fisher's exact test, two-sided.
        both: rows with both properties.
        expected: how many there would be if they were independent.
    """

    npmi: float
    interval: tuple[float, float]
    p_value: float
    both: int
    expected: float


def associated(both: int, first: int, second: int, rows: int) -> Association:
    """The association of two properties.

    The interval is of a Dirichlet posterior of the four cells with Jeffreys' prior of ½ each (Gelman et al. 2013,
    section 3.4): its 2.5 % and 97.5 % quantiles.

    Args:
        both: rows with both.
        first: rows with the first.
        second: rows with the second.
        rows: all rows, at least one.

    Returns:
        ln(p(x, y) / (p(x) p(y))) / −ln p(x, y), with an interval and a p-value.
    """
    from scipy.stats import fisher_exact

    cells = np.array([both, first - both, second - both, rows - first - second + both], np.float64)
    draws = np.random.default_rng(0).dirichlet(cells + 0.5, DRAWS)
    low, high = np.quantile(_npmi(draws), (0.025, 0.975))
    value = float(_npmi(cells[None] / rows)[0])
    p_value = float(fisher_exact(cells.reshape(2, 2)).pvalue)
    return Association(value, (float(low), float(high)), p_value, both, first * second / rows)


def _npmi(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (n, 4) shares: both, only the first, only the second, neither."""
    joint = shares[:, 0]
    product = (shares[:, 0] + shares[:, 1]) * (shares[:, 0] + shares[:, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(joint / product) / -np.log(joint)
    values = np.where(joint >= 1, 1.0, values)
    return np.where(joint <= 0, np.where(product <= 0, 0.0, -1.0), values)
