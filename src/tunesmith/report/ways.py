"""`compare.json` as text, for the terminal and for the page: ways, needs, costs, and what was left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.report.figures import SHARE, about_differences, difference_text, template_of, value_text
from tunesmith.report.formatting import duration, number, size

NEEDS = {
    "facts": "facts that stand in the documents only",
    "form": "a form that the examples show",
    "both": "both facts and a form",
    "neither": "neither of them",
}
"""What rows need, in words."""

Row = tuple[str, ...]


def headline(result: Mapping[str, Any]) -> str:
    """The recommendation in a line.

    Args:
        result: the content of `compare.json`.
    """
    found = result["recommendation"]
    if found["certain"]:
        return f"Recommended: {found['way']}"
    return f"The data cannot tell. The simplest way that is not shown to be worse: {found['way']}"


def about_rows(result: Mapping[str, Any]) -> str:
    """Which rows decide, in sentences.

    Args:
        result: the content of `compare.json`.
    """
    removed = sum(result["removed"].values())
    near = f" {removed:,} training rows were left out as near-duplicates of these." if removed else ""
    return (
        f"{result['rows']:,} held-out rows decide; prompts and examples were chosen on {result['development_rows']:,} "
        f"others; {result['training_rows']:,} are for training.{near} In brackets: 95 % intervals over rows."
    )


def about_quality(result: Mapping[str, Any]) -> str:
    """What the reader of the differences in what decides has to know, in sentences.

    Args:
        result: the content of `compare.json`.
    """
    name = result["metric"]
    own = {way: {name: entries[name]} for way, entries in result["differences"].items() if name in entries}
    return about_differences({**result, "differences": own})


def ways_rows(result: Mapping[str, Any]) -> list[Row]:
    """The ways, with what decides and how long an answer takes.

    Args:
        result: the content of `compare.json`.

    Returns:
        The headings, then a row for each way.
    """
    name = result["metric"]
    about, ways = result["figures"][name], result["ways"]
    template = template_of(about["unit"], [number(way[name]["value"]) for way in ways.values()])
    headings = ("way", about["title"], f"from {result['reference']}", "p50, s", "p95, s")
    rows = [
        (
            way,
            value_text(values[name], template),
            difference_text(result["differences"].get(way, {}).get(name), template),
            *(f"{values['latency'][level]:.2f}" for level in ("p50", "p95")),
        )
        for way, values in ways.items()
    ]
    return [headings, *rows]


def other_figures(result: Mapping[str, Any]) -> list[Row]:
    """All figures but the one that decides: by way.

    Args:
        result: the content of `compare.json`.

    Returns:
        The headings, then a row for each figure; none if there are no others.
    """
    ways = result["ways"]
    others = [name for name in result["figures"] if name != result["metric"]]
    rows = []
    for name in others:
        about = result["figures"][name]
        entries = [way.get(name) for way in ways.values()]
        template = template_of(about["unit"], [number(each["value"]) for each in entries if each])
        rows.append((about["title"], *(value_text(each, template) for each in entries)))
    return [("", *ways), *rows] if rows else []


def cost_rows(result: Mapping[str, Any]) -> list[Row]:
    """What the ways cost.

    Args:
        result: the content of `compare.json`.

    Returns:
        The headings, then a row for each way.
    """
    is_money = result["cost_unit"] == "money"
    headings = ("way", "labeled rows", "at first", "tokens in", "out", "1,000 requests",
                f"{result['requests']:,} in all", "changed fact", "memory")  # fmt: skip
    rows = []
    for name, way in result["ways"].items():
        cost = way["cost"]
        change = cost["change_seconds"]
        rows.append(
            (
                name,
                f"{cost['labeled_rows']:,}",
                _price(cost["once"], is_money),
                _tokens(cost["tokens_in"]),
                _tokens(cost["tokens_out"]),
                _price(cost["per_thousand"], is_money),
                _price(cost["total"], is_money),
                "–" if change is None else "edit prompt" if change == 0 else duration(change),
                "server" if cost["is_served"] else "–" if cost["memory_bytes"] is None else size(cost["memory_bytes"]),
            )
        )
    return [headings, *rows]


def _price(value: float | None, is_money: bool) -> str:
    return "no price stated" if value is None else f"{value:,.2f}" if is_money else duration(value)


def _tokens(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def about_needs(result: Mapping[str, Any]) -> str:
    """What rows need, in a sentence.

    Args:
        result: the content of `compare.json`.
    """
    needs = result["needs"]
    if len(needs) == 1:
        (need,) = needs
        return f"All rows need {NEEDS[need]}, by words and characters."
    named = "; ".join(f"{name}: {NEEDS[name]}" for name in needs)
    return f"What rows need, by words and characters. {named}."


def need_rows(result: Mapping[str, Any]) -> list[Row]:
    """What decides among the rows of each need.

    Args:
        result: the content of `compare.json`.

    Returns:
        The headings, then a row for each way, then what is recommended; none if all rows have the same need.
    """
    needs = result["needs"]
    if len(needs) < 2:
        return []
    values = [each["value"] for need in needs.values() for each in need["ways"].values()]
    template = template_of(result["figures"][result["metric"]]["unit"], values)
    names = list(next(iter(needs.values()))["ways"])
    rows = [(name, *(value_text(need["ways"][name], template) for need in needs.values())) for name in names]
    best = [_best(need) for need in needs.values()]
    headings = ("way", *(f"{name}: {need['rows']:,} rows" for name, need in needs.items()))
    return [headings, *rows, ("to take", *best)]


def _best(need: Mapping[str, Any]) -> str:
    if need["way"] is None:
        return "too few rows"
    return str(need["way"]) if need["certain"] else f"cannot tell ({need['way']})"


def break_even_lines(result: Mapping[str, Any]) -> list[str]:
    """From how many requests on one way costs less than another.

    Args:
        result: the content of `compare.json`.

    Returns:
        Sentences, for ways that are not shown to be worse than the best; pairs of which one never pays are left out.
    """
    as_good = set(result["recommendation"]["not_worse"])
    return [
        f"{each['way']} costs less than {each['other']} from {each['requests']:,.0f} requests on."
        for each in result["break_even"]
        if each["requests"] is not None and {each["way"], each["other"]} <= as_good
    ]


def note_lines(result: Mapping[str, Any]) -> list[str]:
    """What did not fit into a model's context.

    Args:
        result: the content of `compare.json`.

    Returns:
        A line for each way with less than it was to have.
    """
    return [f"{name}: {note}" for name, way in result["ways"].items() if (note := way["about"].get("note"))]


def left_out_lines(result: Mapping[str, Any]) -> list[str]:
    """Ways that were not compared, and why.

    Args:
        result: the content of `compare.json`.

    Returns:
        A line for each reason.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in result["left_out"].items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def points(result: Mapping[str, Any]) -> Sequence[tuple[str, float, float, tuple[float, float]]]:
    """Quality against cost.

    Args:
        result: the content of `compare.json`.

    Returns:
        (way, cost of a thousand requests, value, interval) of each way whose cost is known; shares in percent.
    """
    name = result["metric"]
    scale = 100.0 if result["figures"][name]["unit"] == SHARE else 1.0
    found = []
    for way, values in result["ways"].items():
        cost, (low, high) = values["cost"]["per_thousand"], values[name]["interval"]
        if cost is not None:
            found.append((way, cost, scale * values[name]["value"], (scale * low, scale * high)))
    return found
