"""The figures of several models with their intervals, and the differences between them, as plain values for tables."""

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluation.figures import Figures
from tunesmith.statistics.differences import LEVEL, Difference, holm, paired
from tunesmith.statistics.measured import Better, Measured
from tunesmith.statistics.power import rows_needed


def summary(models: Mapping[str, Figures], reference: str) -> dict[str, Any]:
    """The figures of all models, and their differences from one of them.

    Args:
        models: by column name.
        reference: the model that the others are compared with.

    Returns:
        `reference`; `figures`: what each is, by name; `models`: value and interval, by model and figure; `differences`:
        by model and figure, as `difference_of` describes them, with Holm's correction over all of them.
    """
    compared = [
        (model, name, difference)
        for model, figures in models.items()
        if model != reference
        for name, measured in figures.items()
        if measured.is_compared and name in models[reference]
        if (difference := paired(models[reference][name], measured)) is not None
    ]
    adjusted = holm([difference.p_value for *_, difference in compared])
    differences: dict[str, dict[str, Any]] = {model: {} for model in models if model != reference}
    for (model, name, difference), p_value in zip(compared, adjusted, strict=True):
        level = LEVEL / len(compared)
        differences[model][name] = difference_of(difference, models[model][name].better, p_value, level)
    about = {name: about_figure(measured) for figures in models.values() for name, measured in figures.items()}
    return {
        "reference": reference,
        "figures": about,
        "models": {
            model: {name: with_interval(measured) for name, measured in figures.items()}
            for model, figures in models.items()
        },
        "differences": differences,
        "comparisons": len(compared),
    }


def about_figure(measured: Measured) -> dict[str, Any]:
    """What a figure is, for tables: title, explanation, better, unit.

    Args:
        measured: of any model.

    Returns:
        Plain values.
    """
    return {
        "title": measured.title,
        "explanation": measured.explanation,
        "better": measured.better,
        "unit": measured.unit,
    }


def with_interval(measured: Measured) -> dict[str, Any]:
    """A figure's value, its 95 % interval, and how many rows it is of.

    Args:
        measured: the figure.

    Returns:
        `value`, `interval` and `rows`.
    """
    value, interval = measured.estimate
    return {"value": value, "interval": interval, "rows": len(measured.units)}


def difference_of(difference: Difference, better: Better, p_value: float, level: float) -> dict[str, Any]:
    """A difference for tables.

    Args:
        difference: as found.
        better: which direction of the figure is good.
        p_value: adjusted for the number of comparisons.
        level: the p-value at which one of so many comparisons is shown, to say how many rows would be needed.

    Returns:
        `value`, `interval` (95 %, of this comparison alone), `rows`, `p_value`, `adjusted_p_value`, `verdict`
        (`better`, `worse`, `different`, or `not shown`), and if it is not shown, `rows_needed` to show a difference of
        this size (None: there is no difference to show, or it takes more than a million).
    """
    shown = {
        "value": difference.value,
        "interval": difference.interval,
        "rows": difference.rows,
        "p_value": difference.p_value,
        "adjusted_p_value": p_value,
        "verdict": _verdict(difference.value, better) if p_value < LEVEL else "not shown",
    }
    return shown if p_value < LEVEL else {**shown, "rows_needed": rows_needed(difference, level)}


def _verdict(value: float, better: Better) -> str:
    if better == "neither":
        return "different"
    return "better" if (value > 0) == (better == "higher") else "worse"
