"""How many rows show a difference, and which difference so many rows show."""

from math import ceil, inf

from scipy.special import ndtri

from tunesmith.statistics.differences import LEVEL, Difference

POWER = 0.8
"""The chance of showing a difference of the assumed size (Cohen 1988)."""

MOST_ROWS = 1_000_000
"""More rows than that are not named: nobody has them."""


def rows_needed(difference: Difference, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many rows like these would show a difference of the size found.

    Args:
        difference: as found.
        level: the largest p-value that counts as shown; divided by the comparisons if there are several.
        power: the chance that it is shown with so many rows.

    Returns:
        The rows; None if there is no difference to show, or it takes more than a million.
    """
    if difference.value == 0:
        return None
    needed = rows_to_show(difference.value, difference.deviation, level, power)
    return needed if needed <= MOST_ROWS else None


def rows_to_show(size: float, deviation: float, level: float = LEVEL, power: float = POWER) -> int:
    """How many rows show a true difference of a given size.

    n = ((z_{1−α/2} + z_power) · deviation / size)² + z²_{1−α/2} / 2; the last term is for the deviation, which is
    itself estimated (Guenther 1981).

    Args:
        size: of the difference, in the figure's unit; not 0.
        deviation: of one row's difference, as `Difference.deviation`.
        level, power: as in `rows_needed`.

    Returns:
        The rows, at least 2.
    """
    z = float(ndtri(1 - level / 2))
    return max(2, ceil(((z + float(ndtri(power))) * deviation / size) ** 2 + z**2 / 2))


def detectable(rows: int, deviation: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that so many rows show; the inverse of `rows_to_show`.

    Args:
        rows: how many rows there are.
        deviation: of one row's difference, as `Difference.deviation`.
        level, power: as in `rows_needed`.

    Returns:
        In the figure's unit; infinite if there are too few rows for any.
    """
    z = float(ndtri(1 - level / 2))
    left = rows - z**2 / 2
    return (z + float(ndtri(power))) * deviation / left**0.5 if left > 0 else inf
