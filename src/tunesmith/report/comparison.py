"""Prepares `evaluation.json` for the page: a table of all models, a chart for each figure, samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tunesmith.report.charts import interval_chart
from tunesmith.report.figures import (
    SHARE,
    about_differences,
    about_left_out,
    about_prompt,
    difference_text,
    template_of,
    title_of,
    value_text,
)
from tunesmith.report.forgetting import about_curve, curve_charts, curve_rows, curves_of
from tunesmith.report.formatting import figure, number
from tunesmith.report.judge import about_judge, judge_rows
from tunesmith.report.leakage import HEADING, about_leakage, leakage_rows
from tunesmith.report.word_difference import marked_difference

CUT_LINES = 10
"""Lines of a long text that the page shows before the reader asks for all of it."""

PROMPT_WIDTH, ANSWER_WIDTH = 110, 45
"""Characters in a line of a sample's prompt and of its answers, which are side by side or on a phone."""


POINTS = "{:.1f} points"
"""The format of a difference of two percentages."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table.

    Attributes:
        column: its heading.
        text: a figure with its interval, or a difference.
        verdict: of a difference that is shown, `better`, `worse` or `different`; else empty.
    """

    column: str
    text: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table.

    Attributes:
        name: of the figure.
        cells: each model's figure, then the differences from the first.
    """

    name: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text of a sample.

    Attributes:
        side: `expected`, or a model.
        style: the CSS class of its model.
        text: as HTML.
        is_long: whether the page cuts it.
    """

    side: str
    style: str
    text: Markup
    is_long: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A row with the answers to it, side by side.

    Attributes:
        source: of the row.
        prompt: its question.
        answers: expected, and each model's; words that only the expected or only the last model's has are marked.
    """

    source: str
    prompt: Passage
    answers: list[Passage]

    @property
    def is_long(self) -> bool:
        return any(passage.is_long for passage in (self.prompt, *self.answers))


@dataclass(frozen=True, slots=True)
class ShownCurve:
    """Gain against forgetting, of checkpoints or of reruns.

    Attributes:
        title: of the section.
        about: what it says, in sentences.
        rows: of the table, as `curve_rows` has them.
        charts: SVG.
    """

    title: str
    about: str
    rows: list[tuple[str, ...]]
    charts: list[Markup]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the page shows of an evaluation.

    Attributes:
        about: the evaluated rows, in a sentence.
        differences: what the differences mean, in sentences.
        verdict: the result, in a sentence.
        columns: headings of the table.
        measures: rows of the table.
        charts: SVG, one for each figure.
        samples: as in the file, with the differences marked.
        marked: the model whose answers are marked; empty if there is none.
        limits: of a gate: limit, outcome, why.
        gate: whether it is passed, in a sentence; empty without one.
        judge: what a judge's verdicts are worth, as `judge_rows` has it; empty without one.
        about_judge: how it was asked, in sentences.
        leakage: figures with and without leaked rows, below their headings; empty if no row is leaked.
        about_leakage: which rows are, in sentences; empty if they were not looked for.
        curves: what checkpoints and reruns gained and forgot.
    """

    about: str
    differences: str
    verdict: str
    columns: list[str]
    measures: list[Measure]
    charts: list[str]
    samples: list[Sample]
    marked: str
    limits: list[tuple[str, str, str]]
    gate: str
    judge: list[tuple[str, ...]]
    about_judge: str
    leakage: list[tuple[str, ...]]
    about_leakage: str
    curves: list[ShownCurve]


def compared(result: Mapping[str, Any]) -> Comparison:
    """Prepare what `tunesmith evaluate` wrote; missing fields are left out.

    Args:
        result: the content of `evaluation.json`.
    """
    figures, models, differences = (result.get(part) or {} for part in ("figures", "models", "differences"))
    measures, charts = [], []
    for name, about in figures.items():
        entries = {model: found.get(name, {}) for model, found in models.items()}
        changes = {model: found.get(name, {}) for model, found in differences.items()}
        measures.append(_measure(name, about, entries, changes))
        charts.append(_chart(about, entries))
    others = list(differences)
    limits = (result.get("gate") or {}).get("limits", ())
    return Comparison(
        about=_about(result),
        differences=about_differences({"figures": {}, "differences": {}, **result}),
        verdict=_verdict(figures, models, differences),
        columns=[*models, *_headings(others)],
        measures=measures,
        charts=[chart for chart in charts if chart],
        samples=[_sample(sample, list(models)) for sample in result.get("samples", ())],
        marked=list(models)[-1] if models else "",
        limits=[(_limit(limit), str(limit["outcome"]), str(limit["why"])) for limit in limits],
        gate="" if not limits else "The gate is passed." if result["gate"]["passed"] else "The gate is not passed.",
        judge=judge_rows(result) if result.get("judge") else [],
        about_judge=about_judge(result) if result.get("judge") else "",
        leakage=[HEADING, *rows] if result.get("leakage") and (rows := leakage_rows(result)) else [],
        about_leakage=about_leakage(result["leakage"]) if result.get("leakage") else "",
        curves=[_curve(title, curve) for title, curve in curves_of(result)],
    )


def _curve(title: str, curve: Mapping[str, Any]) -> ShownCurve:
    rows = [(name, *map(_minus, cells)) for name, *cells in curve_rows(curve)]
    return ShownCurve(title, about_curve(curve), rows, [Markup(chart) for chart in curve_charts(curve)])


def _about(result: Mapping[str, Any]) -> str:
    rows, loss_tokens, answered = (
        figure(result.get(name), "{:,.0f}") for name in ("rows", "loss_tokens", "generated_rows")
    )
    loss = f" ({loss_tokens} loss tokens)" if result.get("loss_tokens") else ""
    answers = f"; answers to {answered} of them" if result.get("generated_rows") else ""
    others = " ".join(filter(None, (about_prompt(result), about_left_out(result))))
    about = f"{rows} {result.get('data') or 'rows'}{loss}{answers}. {others}"
    return about.strip()


def _headings(others: list[str]) -> list[str]:
    return ["difference"] if len(others) == 1 else [f"difference of {model}" for model in others]


def _measure(name: str, about: Mapping[str, Any], entries: Mapping[str, Any], changes: Mapping[str, Any]) -> Measure:
    unit = about.get("unit", SHARE)
    template = template_of(unit, [number(entry["value"]) for entry in entries.values() if "value" in entry], fine=True)
    cells = [Cell(model, _minus(value_text(entry, template))) for model, entry in entries.items()]
    for heading, change in zip(_headings(list(changes)), changes.values(), strict=True):
        verdict = change.get("verdict", "")
        text = difference_text(_in_points(change), POINTS) if unit == SHARE else difference_text(change, template)
        cells.append(Cell(heading, _minus(text), "" if verdict == "not shown" else verdict))
    return Measure(title_of(about, name), cells)


def _in_points(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A difference of two percentages, in percentage points."""
    if not entry:
        return {}
    low, high = entry.get("interval") or (math.nan, math.nan)
    return {"value": 100 * number(entry.get("value")), "interval": [100 * number(low), 100 * number(high)]}


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _sample(sample: Mapping[str, Any], models: list[str]) -> Sample:
    prompt, expected = (str(sample.get(name, "")) for name in ("prompt", "expected"))
    answers = {model: str(text) for model, text in sample.get("answers", {}).items()}
    last = list(answers)[-1] if answers else ""
    marked_expected, marked_last = marked_difference(expected, answers.get(last, ""))
    passages = [Passage("expected", "expected", marked_expected, _is_long(expected, ANSWER_WIDTH))]
    for model, text in answers.items():
        marked = marked_last if model == last else Markup.escape(text)
        passages.append(Passage(model, _style(models, model), marked, _is_long(text, ANSWER_WIDTH)))
    question = Passage("prompt", "prompt", Markup.escape(prompt), _is_long(prompt, PROMPT_WIDTH))
    return Sample(str(sample.get("source", "")), question, passages)


def _style(models: list[str], model: str) -> str:
    """The first model has the color of bases, all others that of tuned ones."""
    return "base" if models[:1] == [model] and len(models) > 1 else "tuned"


def _is_long(text: str, width: int) -> bool:
    """Whether the text has more than `CUT_LINES` lines of so many characters."""
    return sum(max(1, math.ceil(len(line) / width)) for line in text.split("\n")) > CUT_LINES


def _chart(about: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    unit, title = about.get("unit", SHARE), str(about.get("title", ""))
    rows = []
    for model, entry in entries.items():
        low, high = entry.get("interval") or (math.nan, math.nan)
        interval = (number(low), number(high))
        rows.append((model, number(entry.get("value")), interval, _style(list(entries), model)))
    better = {"higher": "", "lower": ", lower is better", "neither": ""}[about.get("better", "higher")]
    heading = f"{title[:1].upper()}{title[1:]}{better}"
    scale, decimals = (100, 1) if unit == SHARE else (1, 3)
    return interval_chart(
        heading, "%" if unit == SHARE else unit, rows, scale, decimals, str(about.get("explanation", ""))
    )


def _limit(limit: Mapping[str, Any]) -> str:
    what = f"{'difference of ' if limit.get('difference') else ''}{limit['figure']}, {limit['model']}"
    return f"{what} ≥ {limit['at_least']:g}" if "at_least" in limit else f"{what} ≤ {limit['at_most']:g}"


def _verdict(figures: Mapping[str, Any], models: Mapping[str, Any], differences: Mapping[str, Any]) -> str:
    """What happened to the first figure, usually the held-out loss, of the only model that is compared."""
    name = next(iter(figures), None)
    if name is None or len(differences) != 1 or not models:
        return "" if name is not None else "The evaluation has no figures."
    (other,) = differences
    before, after = (models.get(model, {}).get(name, {}) for model in (next(iter(models)), other))
    change = differences[other].get(name)
    if not change or "value" not in before or "value" not in after:
        return ""
    template = template_of(figures[name].get("unit", ""), [number(before["value"])], fine=True)
    by = _minus(difference_text(change, template))
    outcome = {"better": "It worked", "worse": "It made things worse"}.get(
        str(change.get("verdict")), "No significant difference"
    )
    sides = (figure(side["value"], template) for side in (before, after))
    return f"{outcome}: held-out {figures[name]['title']} {next(sides)} before, {next(sides)} after (difference {by})."
