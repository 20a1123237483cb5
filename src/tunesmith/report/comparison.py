"""Prepares `evaluation.json` for the page: a table of base and tuned, a chart for each metric, samples."""

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tunesmith.report.charts import interval_chart
from tunesmith.report.formatting import LOSS_UNIT, figure, number
from tunesmith.report.table import describe_loss, writes_text
from tunesmith.report.word_difference import marked_difference

CUT_LINES = 10
"""Lines of a long text that the page shows before the reader asks for all of it."""

PROMPT_WIDTH, ANSWER_WIDTH = 110, 45
"""Characters in a line of a sample's prompt and of its answers, which are side by side or on a phone."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table; each figure with its 95 % interval.

    Attributes:
        name: of the metric.
        base, tuned, difference: formatted; empty if not measured.
        judgment: `better`, `worse`, or empty if the interval of the difference contains 0.
    """

    name: str
    base: str
    tuned: str
    difference: str
    judgment: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A text of a sample.

    Attributes:
        side: `expected`, `base` or `tuned`.
        text: as HTML.
        is_long: whether the page cuts it.
    """

    side: str
    text: Markup
    is_long: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out row with the answers to it, side by side.

    Attributes:
        source: of the row.
        prompt: its question.
        answers: expected, base and tuned; words that only the expected or only the tuned answer has are marked.
    """

    source: str
    prompt: Passage
    answers: list[Passage]

    @property
    def is_long(self) -> bool:
        return any(passage.is_long for passage in (self.prompt, *self.answers))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the page shows of an evaluation.

    Attributes:
        about: the evaluated rows, in a sentence.
        verdict: the result, in a sentence.
        measures: rows of the table.
        charts: SVG, one for each metric.
        samples: as in the file, with the differences marked.
    """

    about: str
    verdict: str
    measures: list[Measure]
    charts: list[str]
    samples: list[Sample]


def compared(result: dict[str, Any]) -> Comparison:
    """Prepare what `tunesmith evaluate` wrote; missing fields are left out."""
    base, tuned, differences = (result.get(side, {}) for side in ("base", "tuned", "differences"))
    losses = [{"value": side.get("loss"), "interval": side.get("loss_interval")} for side in (base, tuned)]
    measures = [
        _measure(describe_loss(result), losses[0], losses[1], differences.get("loss"), -1),
        *(
            [_measure("perplexity", _perplexity(base), _perplexity(tuned), None, -1, "{:,.1f}")]
            if writes_text(result)
            else []
        ),
    ]
    charts = [_chart("Held-out loss, lower is better", result.get("loss_unit", LOSS_UNIT), losses[0], losses[1])]
    for name in {**base.get("metrics", {}), **tuned.get("metrics", {})}:
        before, after = (side.get("metrics", {}).get(name, {}) for side in (base, tuned))
        title = str(before.get("title") or after.get("title") or name)
        better, share = before.get("better", 1), before.get("unit", "%") == "%"
        template, scale, decimals = ("{:.1f}%", 100, 1) if share else ("{:.3f}", 1, 3)
        measures.append(_measure(title, before, after, differences.get(name), better, template, scale))
        note = str(before.get("explanation") or after.get("explanation") or "")
        heading = title[:1].upper() + title[1:]
        charts.append(_chart(heading, "%" if share else "", before, after, scale, decimals, note))
    rows, loss_tokens = (figure(result.get(name), "{:,.0f}") for name in ("rows", "loss_tokens"))
    written = figure(result.get("generated_rows"), "{:,.0f}")
    return Comparison(
        about=f"Loss over {rows} held-out rows ({loss_tokens} loss tokens); answers generated for {written} of them."
        if writes_text(result)
        else f"Over {rows} held-out rows ({loss_tokens} predictions).",
        verdict=_verdict(base, tuned, measures[0]),
        measures=measures,
        charts=[chart for chart in charts if chart],
        samples=[_sample(sample) for sample in result.get("samples", ())],
    )


def _sample(sample: dict[str, Any]) -> Sample:
    prompt, expected, base, tuned = (str(sample.get(name, "")) for name in ("prompt", "expected", "base", "tuned"))
    marked_expected, marked_tuned = marked_difference(expected, tuned)
    marked = {"expected": marked_expected, "base": Markup.escape(base), "tuned": marked_tuned}
    answers = [
        Passage(side, marked[side], _is_long(text, ANSWER_WIDTH))
        for side, text in (("expected", expected), ("base", base), ("tuned", tuned))
    ]
    question = Passage("prompt", Markup.escape(prompt), _is_long(prompt, PROMPT_WIDTH))
    return Sample(str(sample.get("source", "")), question, answers)


def _is_long(text: str, width: int) -> bool:
    """Whether the text has more than `CUT_LINES` lines of so many characters."""
    return sum(max(1, math.ceil(len(line) / width)) for line in text.split("\n")) > CUT_LINES


def _measure(
    name: str,
    base: dict[str, Any],
    tuned: dict[str, Any],
    difference: dict[str, Any] | None,
    better: int,
    template: str = "{:.3f}",
    scale: float = 1.0,
) -> Measure:
    """`better` is 1 if higher is better, −1 if lower is."""
    difference = difference or {}
    low, high = sorted(better * number(each) for each in _ends(difference))
    judgment = "better" if low > 0 else "worse" if high < 0 else ""
    signed = template.replace(":", ":+").replace("%", " points")
    return Measure(
        name,
        _formatted(base, template, scale),
        _formatted(tuned, template, scale),
        _formatted(difference, signed, scale),
        judgment,
    )


def _formatted(score: dict[str, Any], template: str, scale: float) -> str:
    if score.get("value") is None:
        return ""
    value, low, high = (figure(scale * number(each), template) for each in (score["value"], *_ends(score)))
    bare = [end.removesuffix("%").removesuffix(" points") for end in (low, high)]
    within = f" [{bare[0]}, {bare[1]}]" if score.get("interval") else ""
    return (value + within).replace("-", "−")


def _perplexity(side: dict[str, Any]) -> dict[str, Any]:
    """Perplexity is the exponential of the loss; the same holds for the ends of its interval."""
    interval = [math.exp(min(number(each), 700.0)) for each in _ends({"interval": side.get("loss_interval")})]
    return {"value": side.get("perplexity"), "interval": interval if side.get("loss_interval") else None}


def _ends(score: dict[str, Any]) -> tuple[Any, Any]:
    low, high = score.get("interval") or (math.nan, math.nan)
    return low, high


def _chart(
    title: str,
    unit: str,
    base: dict[str, Any],
    tuned: dict[str, Any],
    scale: float = 1.0,
    decimals: int = 3,
    note: str = "",
) -> str:
    rows = []
    for name, side in (("base", base), ("tuned", tuned)):
        low, high = _ends(side)
        rows.append((name, number(side.get("value")), (number(low), number(high)), name))
    return interval_chart(title, unit, rows, scale, decimals, note)


def _verdict(base: dict[str, Any], tuned: dict[str, Any], loss: Measure) -> str:
    if not loss.base or not loss.tuned:
        return "The evaluation has no losses."
    by = f" (difference {loss.difference})" if loss.difference else ""
    change = f"held-out loss {figure(base.get('loss'))} before, {figure(tuned.get('loss'))} after{by}"
    outcome = {"better": "It worked", "worse": "It made things worse"}.get(loss.judgment, "No significant difference")
    return f"{outcome}: {change}."
