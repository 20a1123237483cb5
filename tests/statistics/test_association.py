"""Normalized PMI: its known values, and an interval that covers the truth as often as it says."""

import numpy as np
import pytest

from tunesmith.statistics.association import associated


@pytest.mark.parametrize(
    ("both", "first", "second", "rows", "npmi"),
    [(50, 50, 50, 100, 1.0), (0, 50, 50, 100, -1.0), (25, 50, 50, 100, 0.0), (20, 40, 20, 100, 0.5693)],
)
def test_it_is_one_if_always_zero_if_independent_and_minus_one_if_never(
    both: int, first: int, second: int, rows: int, npmi: float
) -> None:
    assert associated(both, first, second, rows).npmi == pytest.approx(npmi, abs=1e-4)


@pytest.mark.parametrize("shares", [(0.02, 0.08, 0.08, 0.82), (0.1, 0.1, 0.2, 0.6)])
def test_the_interval_covers_the_true_value_in_95_percent_of_samples(shares: tuple[float, ...]) -> None:
    draw = np.random.default_rng(1)
    joint = shares[0]
    truth = np.log(joint / ((joint + shares[1]) * (joint + shares[2]))) / -np.log(joint)
    samples = draw.multinomial(400, shares, size=300)
    covered = [
        low <= truth <= high
        for n11, n10, n01, _ in samples.tolist()
        for low, high in [associated(n11, n11 + n10, n11 + n01, 400).interval]
    ]
    assert 0.91 <= np.mean(covered) <= 0.985


def test_independent_properties_are_rarely_significant() -> None:
    draw = np.random.default_rng(2)
    samples = draw.multinomial(300, [0.06, 0.24, 0.14, 0.56], size=300)
    p_values = [associated(a, a + b, a + c, 300).p_value for a, b, c, _ in samples.tolist()]
    assert np.mean(np.array(p_values) < 0.05) <= 0.08
