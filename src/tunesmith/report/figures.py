"""Figures of an evaluation as text: a value with its interval, a difference, and what it means if none is shown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.report.colors import BAD, GOOD
from tunesmith.report.formatting import number

SHARE = "share"
"""The unit of figures that are shown in percent."""

VERDICTS = {"better": f"bold {GOOD}", "worse": f"bold {BAD}", "different": "bold", "not shown": ""}
"""The style of a difference in the terminal."""


def title_of(about: Mapping[str, Any], name: str) -> str:
    """A figure's title, with its unit if that is not percent.

    Args:
        about: of `figures` in `evaluation.json`.
        name: of the figure.
    """
    title, unit = str(about.get("title", name)), about.get("unit", SHARE)
    return f"{title} ({unit})" if unit not in (SHARE, "") else title


def template_of(unit: str, values: Sequence[float], fine: bool = False) -> str:
    """The format of numbers that are shown beside each other.

    Args:
        unit: of the figure.
        values: the numbers; the largest decides how many decimals they have.
        fine: one more decimal.
    """
    if unit == SHARE:
        return "{:.1%}" if fine else "{:.0%}"
    size = max((abs(value) for value in values), default=0.0)
    if 0 < size < 0.1:
        return "{:.3g}" if fine else "{:.2g}"
    return f"{{:,.{(0 if size >= 100 else 1 if size >= 10 else 2) + fine}f}}"


def value_text(entry: Mapping[str, Any] | None, template: str) -> str:
    """`34% [30, 38]`.

    Args:
        entry: `value` and `interval`; None: nothing was measured.
        template: as `template_of` makes it.
    """
    if not entry or entry.get("value") is None:
        return "–"
    value = template.format(number(entry["value"]))
    if not entry.get("interval") or (entry.get("rows") == 1 and entry["interval"][0] == entry["interval"][1]):
        return value  # what was counted, such as a size, has no interval
    low, high = (template.format(number(end)).removesuffix("%").removesuffix(" points") for end in entry["interval"])
    return f"{value} [{low}, {high}]"


def difference_text(entry: Mapping[str, Any] | None, template: str) -> str:
    """`+4% [-1, 9]`; empty if there is none.

    Args:
        entry: `value` and `interval`; None: there is none.
        template: as `template_of` makes it.
    """
    return value_text(entry, template.replace(":", ":+")) if entry else ""


def not_shown(result: Mapping[str, Any]) -> Iterator[str]:
    """For each difference that is not shown, how many rows would show one of this size.

    Args:
        result: the content of `evaluation.json`.
    """
    models: dict[tuple[str, str], list[str]] = {}
    for model, differences in result["differences"].items():
        for name, entry in differences.items():
            if entry.get("verdict") == "not shown":
                about = result["figures"].get(name, {})
                about_it = str(about.get("title", name)), _needed(entry, about.get("unit", SHARE))
                models.setdefault(about_it, []).append(model)
    several = len(result["differences"]) > 1
    for (title, needed), own in models.items():
        yield f"{title}{f' of {_listed(own)}' if several else ''} ({needed})"


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _needed(entry: Mapping[str, Any], unit: str) -> str:
    value, needed = number(entry["value"]), entry.get("rows_needed")
    if value == 0:
        return "none in these rows"
    size = template_of(unit, [value]).replace(":", ":+").format(value)
    if needed is None:
        return f"more than a million rows would be needed to show {size}"
    return f"{needed:,} rows would be needed to show {size}"


def about_left_out(result: Mapping[str, Any]) -> str:
    """Which models, and which figures of a model, were left out, and why, in sentences; empty if none were.

    Args:
        result: the content of `evaluation.json`.
    """
    by_reason: dict[str, list[str]] = {}
    for what, why in (result.get("left_out") or {}).items():
        by_reason.setdefault(str(why).rstrip("."), []).append(what)
    return " ".join(f"Left out: {', '.join(what)}: {why}." for why, what in by_reason.items())


def about_prompt(result: Mapping[str, Any]) -> str:
    """Which prompt was before the chats, in sentences; empty if there was none.

    Args:
        result: the content of `evaluation.json`.
    """
    prompt = result.get("prompt")
    if not prompt:
        return ""
    notes = "".join(f" {model}: {note}" for model, note in prompt["notes"].items())
    return f"With the prompt of version {prompt['version']} before each chat.{notes}"


def about_differences(result: Mapping[str, Any]) -> str:
    """What the reader of a table of differences has to know, in sentences.

    Args:
        result: the content of `evaluation.json`.
    """
    count = result.get("comparisons", 0)
    if not count:
        return ""
    holm = f", after Holm's correction for {count} comparisons" if count > 1 else ""
    missing = list(not_shown(result))
    sentence = f" No difference shown at this size: {'; '.join(missing)}." if missing else ""
    return f"Differences in color are significant at 5 %{holm}.{sentence}"
