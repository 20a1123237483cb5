"""A run as one page: its curves, what its data held, what was foretold and measured, samples, the evaluation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tunesmith.report.charts import Line, Point, bar_chart, line_chart
from tunesmith.report.words import count, duration, size
from tunesmith.run import Event, Run, atomic_write

COUNTS = {
    "rows": "rows read",
    "malformed": "malformed",
    "unusable": "unusable",
    "examples": "examples to learn from",
    "held_out_rows": "held out",
    "truncated": "truncated",
    "split": "split",
    "dropped": "over-long, left out",
    "unlearnable": "pieces without anything to learn",
    "separate_turns": "turns made examples of their own",
    "tokens": "tokens",
    "learnt_tokens": "learnt tokens",
    "longest": "tokens in the longest example",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run's directory from what lies in it; a run that was cut short will do."""
    run = Run.open(folder)
    loader = Environment(loader=PackageLoader("tunesmith.report", "."), autoescape=True)
    page = loader.get_template("report.html.jinja").render(**_shown(run))
    path = run.folder / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    return path


def _shown(run: Run) -> dict[str, Any]:
    events = run.events()
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event["event"], []).append(event)
    start, data = _last(kinds, "start"), _last(kinds, "data")
    return {
        "name": run.folder.name,
        "outcome": _outcome(kinds),
        "start": start,
        "figures": [Markup(chart) for chart in _charts(kinds) if chart],
        "counts": [(said, f"{data[name]:,}") for name, said in COUNTS.items() if data.get(name)],
        "form": data.get("form"),
        "histogram": Markup(_histogram(data)),
        "bad_rows": [*data.get("malformed_rows", ()), *data.get("unusable_rows", ())],
        "skipped": kinds.get("skipped", []),
        "warnings": kinds.get("warning", []),
        "costs": _costs(kinds.get("plan", [])),
        "evaluation": _evaluation(_read_json(run.folder / "evaluation.json")),
        "recipe": (run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        "provenance": json.dumps(_read_json(run.folder / "provenance.json"), indent=2, ensure_ascii=False),
    }


def _last(kinds: dict[str, list[Event]], kind: str) -> Event:
    return kinds.get(kind, [{}])[-1]


def _outcome(kinds: dict[str, list[Event]]) -> str:
    """The run in a sentence."""
    start, end = _last(kinds, "start"), _last(kinds, "end")
    steps = _last(kinds, "step").get("step", 0)
    if not start:
        return "Nothing has happened in this run yet."
    trained = f"{count(start['trained_parameters'])} of {count(start['parameters'])} weights"
    what = f"{start['method']} on {start['base']}, {trained}, {start['precision']} on {start['device']}"
    if not end:
        return f"{what}: {steps:,} of {start['total_steps']:,} steps so far."
    how = "finished" if end["reason"] == "done" else end["reason"]
    return f"{what}: {how} after {end['step']:,} steps in {duration(end['seconds'])}."


def _charts(kinds: dict[str, list[Event]]) -> list[str]:
    steps, evaluations = kinds.get("step", []), kinds.get("evaluation", [])
    losses = _points(steps, "loss")
    held = Line(
        "held out",
        _points(evaluations, "loss"),
        "held",
        [(_number(low), _number(high)) for low, high in (event["loss_interval"] for event in evaluations)],
    )
    raw = Line("each step", losses, "raw")
    smooth = Line("training, smoothed", _smoothed(losses), "smooth")
    rates = [
        (x, event["tokens"] / event["seconds"]) for (x, _), event in zip(losses, steps, strict=True) if event["seconds"]
    ]
    return [
        line_chart("Loss", "step", "nats a learnt token", [raw, smooth, held]),
        line_chart(
            "Learning rate", "step", "learning rate", [Line("rate", _points(steps, "learning_rate"), "smooth")], True
        ),
        line_chart(
            "Gradient norm", "step", "gradient norm", [Line("norm", _points(steps, "grad_norm"), "smooth")], True
        ),
        line_chart("Speed", "step", "tokens a second", [Line("speed", rates, "smooth")], True),
    ]


def _points(events: Sequence[Event], name: str) -> list[Point]:
    return [(float(event["step"]), _number(event[name])) for event in events]


def _number(value: Any) -> float:
    """metrics.jsonl has "nan" and "inf" as strings."""
    return float(value) if value is not None else math.nan


def _smoothed(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """The mean over about 3 % of the run up to each point; where a value is not finite the mean goes on without it."""
    width = max(1, round(len(points) * share))
    weight = 1 / width
    out: list[Point] = []
    mean = math.nan
    for x, y in points:
        if math.isfinite(y):
            mean = y if math.isnan(mean) else mean + weight * (y - mean)
        out.append((x, mean))
    return out


def _histogram(data: Event) -> str:
    bars = [(f"{edge:,}", float(examples)) for edge, examples in data.get("length_histogram", ())]
    return bar_chart("Lengths of the examples", "tokens, up to", "examples", bars)


def _costs(plans: Sequence[Event]) -> list[tuple[str, str, str]]:
    """(what, foretold, measured)."""
    predicted = next((event["predicted"] for event in plans if "predicted" in event), None)
    measured = next((event["measured"] for event in reversed(plans) if "measured" in event), None)

    def both(said: Any) -> tuple[str, str]:
        return said(predicted) if predicted else "", said(measured) if measured else ""

    return [
        ("peak memory", *both(lambda plan: size(plan["memory"]["peak_bytes"]))),
        ("time", *both(lambda plan: duration(plan["time"]["total_seconds"]))),
        ("tokens a second", *both(lambda plan: f"{plan['time']['tokens_per_second']:,.0f}")),
    ]


def _evaluation(result: dict[str, Any]) -> dict[str, Any] | None:
    if not result:
        return None
    base, tuned, differences = result["base"], result["tuned"], result["differences"]
    rows = [
        (
            "loss (nats a token)",
            _with_interval(base["loss"], base["loss_interval"], "{:.3f}"),
            _with_interval(tuned["loss"], tuned["loss_interval"], "{:.3f}"),
            _with_interval(differences["loss"]["value"], differences["loss"]["interval"], "{:+.3f}"),
        ),
        ("perplexity", f"{base['perplexity']:,.1f}", f"{tuned['perplexity']:,.1f}", ""),
    ]
    for name, before in base["metrics"].items():
        after, change = tuned["metrics"][name], differences[name]
        rows.append(
            (
                before["described"],
                _with_interval(before["value"], before["interval"], "{:.1%}"),
                _with_interval(after["value"], after["interval"], "{:.1%}"),
                _with_interval(change["value"], change["interval"], "{:+.1%}"),
            )
        )
    return {
        "rows": rows,
        "samples": result["samples"],
        "about": f"{result['rows']:,} held-out rows; answers to {result['generated_rows']:,} of them.",
    }


def _with_interval(value: float, interval: Sequence[float], form: str) -> str:
    return f"{form.format(value)} [{form.format(interval[0])}, {form.format(interval[1])}]"


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
