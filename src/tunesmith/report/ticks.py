"""Tick positions and tick labels of an axis."""

import math
from collections.abc import Sequence
from itertools import pairwise


def round_ticks(low: float, high: float, target: int = 5, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 × 10ⁿ within [low, high], about `target` of them, at least `least` apart.

    Args:
        low, high: ends of the axis, low < high.
        target: approximate number of ticks.
        least: the smallest distance between two ticks; 1 for axes that count.
    """
    raw = max((high - low) / target, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The shortest labels that are distinct, all in one style: `250`, `500`; `20,000`; `200k`; `0.05`, `0.10`; `1e-5`,
    `2e-5`."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    step = min((after - before for before, after in pairwise(ticks)), default=largest or 1.0)
    if largest and not 1e-3 <= largest < 1e9:
        digits = max(0, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9))
        return ["0" if abs(tick) < step / 2 else _scientific(tick, digits) for tick in ticks]
    unit, name = (1e6, "M") if largest >= 1e7 else (1e3, "k") if largest >= 1e5 else (1.0, "")
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return [f"{tick / unit:,.{decimals}f}{name}" if abs(tick) >= step / 2 else "0" for tick in ticks]


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
