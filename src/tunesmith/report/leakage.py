"""What figures are without leaked rows, for the table and the page."""

from collections.abc import Mapping
from typing import Any

from tunesmith.report.figures import template_of, title_of, value_text

SHOWN = 3
"""Leaked rows that are named."""

HEADING = ("figure", "model", "all rows", "without leaked rows")


def about_leakage(leakage: Mapping[str, Any]) -> str:
    """How many rows are leaked, and which.

    Args:
        leakage: of `evaluation.json`.
    """
    of = f"{leakage['rows']:,} rows, compared with {leakage['training_rows']:,} that the run was trained on."
    if not leakage["leaked"]:
        return f"None of the {of} is among them or nearly the same as one of them."
    named = "; ".join(f"{each['source']}: {each['detail']}" for each in leakage["leaks"][:SHOWN])
    more = f"; and {leakage['leaked'] - SHOWN:,} more" if leakage["leaked"] > SHOWN else ""
    return f"Leaked: {leakage['leaked']:,} of the {of} {named}{more}."


def leakage_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Each figure of each model on all rows, and on those that are not leaked.

    Args:
        result: the content of `evaluation.json`, with `leakage`.

    Returns:
        Rows below `HEADING`; none if no row is leaked.
    """
    leakage = result["leakage"]
    if not leakage["leaked"]:
        return []
    rows = []
    for name, about in leakage["figures"].items():
        for model, figures in leakage["models"].items():
            if name in figures:
                both = (result["models"][model][name], figures[name])
                template = template_of(about["unit"], [each["value"] for each in both if each["value"] is not None])
                rows.append((title_of(about, name), model, *(value_text(each, template) for each in both)))
    return rows
