"""How far a judge can be trusted, for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

from tunesmith.report.figures import SHARE, template_of, value_text
from tunesmith.report.formatting import number


def judge_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a judge's verdicts on each model's answers are worth, and what people's labels make of them.

    Args:
        result: the content of `evaluation.json`, with `judge`.

    Returns:
        Rows with a heading and a cell for each judged model; the first row has the models.
    """
    judge = result["judge"]
    models: dict[str, dict[str, Any]] = judge["models"]
    name, unit = ("judge.wins", SHARE) if judge["pairs"] else ("judge.score", "points")
    template, share = template_of(unit, [1.0]), template_of(SHARE, [])
    itself = [about["itself"] for about in models.values()]
    rows = [
        (f"judge {judge['name']}", *models),
        ("replies that could not be read", *(f"{each['unread']:,} of {each['replies']:,}" for each in models.values())),
        ("agrees with itself", *(value_text(each, share) for each in itself)),
        ("  by chance it would", *("–" if each is None else share.format(number(each["chance"])) for each in itself)),
        (name, *(value_text(result["models"][model].get(name), template) for model in models)),
    ]
    if judge["labels"] is None:
        return rows
    by_people = (
        ("  corrected by people's labels", "corrected", template),
        ("agrees with people", "people", share),
        ("  beyond chance (kappa)", "kappa", "{:.2f}"),
    )
    return [
        *rows,
        *((title, *(value_text(each[key], form) for each in models.values())) for title, key, form in by_people),
        ("  labels", *(f"{each['labels']:,}" for each in models.values())),
    ]


def about_judge(result: Mapping[str, Any]) -> str:
    """How a judge was asked, in sentences.

    Args:
        result: the content of `evaluation.json`, with `judge`.
    """
    judge = result["judge"]
    again = "with the two answers in the other order" if judge["pairs"] else "with random numbers"
    asked = f"Rubric: {judge['rubric'] or 'the default one'}. Every answer is judged twice, the second time {again}."
    if judge["refused_schema"] is None:
        return asked
    return f"{asked} The server takes no JSON schema, so replies may have any form: {judge['refused_schema']}"
