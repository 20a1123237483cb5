"""Tables in the terminal: an evaluation with intervals and samples, ways of merging, the methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import ALSO, BAD, GOOD, THIRD, WARNING
from tunesmith.report.figures import (
    VERDICTS,
    about_differences,
    about_left_out,
    about_prompt,
    difference_text,
    template_of,
    title_of,
    value_text,
)
from tunesmith.report.forgetting import about_curve, curve_rows
from tunesmith.report.formatting import count, duration, number, size
from tunesmith.report.judge import about_judge, judge_rows
from tunesmith.report.leakage import HEADING, about_leakage, leakage_rows


def evaluation_table(result: dict[str, Any]) -> Table:
    """All figures of all models with 95 % intervals, and the differences from the first model.

    Two models are beside each other. Of more than two, each figure has a line for each model.

    Args:
        result: the content of `evaluation.json`.

    Returns:
        The table, at eighty columns.
    """
    answered = f"; answers to {result['generated_rows']:,} of them" if result["generated_rows"] else ""
    rows = f"{result['rows']:,} {result['data']}{answered}. " if result.get("data") else ""
    if result.get("budget"):
        rows += _about_budget(result["budget"])
    intervals = f"{rows}In brackets: 95 % intervals over rows."
    about = (intervals, about_prompt(result), about_differences(result), about_left_out(result))
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=" ".join(filter(None, about)),
        caption_justify="left",
    )
    models = list(result["models"])
    if len(models) == 2:
        _side_by_side(table, result, models)
    else:
        _one_below_another(table, result, models)
    return table


def _about_budget(budget: dict[str, Any]) -> str:
    took = [] if budget["seconds_per_answer"] is None else [f"{budget['seconds_per_answer']:.2g} s for an answer"]
    took += [f"{each:.2g} s for a row of {suite}" for suite, each in budget["seconds_per_row"].items()]
    return f"{duration(budget['seconds'])} allow {budget['rows']:,} rows: the first model took {', '.join(took)}. "


def _side_by_side(table: Table, result: dict[str, Any], models: Sequence[str]) -> None:
    for title in ("", *models, "difference"):
        table.add_column(title, justify="left" if not title else "right")
    (other,) = result["differences"]
    for name, about in result["figures"].items():
        entries = [result["models"][model].get(name) for model in models]
        template = template_of(about["unit"], [number(entry["value"]) for entry in entries if entry])
        cells = [value_text(entry, template) for entry in entries]
        table.add_row(title_of(about, name), *cells, _difference(result["differences"][other].get(name), template))


def _one_below_another(table: Table, result: dict[str, Any], models: Sequence[str]) -> None:
    alone = len(models) == 1
    for title in ("", "") if alone else ("", "", f"difference from {result['reference']}"):
        table.add_column(title, justify="right" if table.columns else "left")
    for name, about in result["figures"].items():
        measured = {model: result["models"][model].get(name) for model in models}
        template = template_of(about["unit"], [number(entry["value"]) for entry in measured.values() if entry])
        if alone:
            table.add_row(title_of(about, name), value_text(measured[models[0]], template))
            continue
        table.add_row(Text(title_of(about, name), style="bold"))
        for model, entry in measured.items():
            difference = result["differences"].get(model, {}).get(name)
            table.add_row(f"  {model}", value_text(entry, template), _difference(difference, template))


def _difference(entry: dict[str, Any] | None, template: str) -> Text:
    """In color if it is shown to be better or worse."""
    return Text(difference_text(entry, template), style=VERDICTS[(entry or {}).get("verdict", "not shown")])


def judge_table(result: dict[str, Any]) -> Table:
    """How far the judge can be trusted on each model's answers, and what people's labels make of its verdicts.

    Args:
        result: the content of `evaluation.json`, with `judge`.

    Returns:
        The table, at eighty columns.
    """
    heading, *rows = judge_rows(result)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=about_judge(result), caption_justify="left")
    for title in heading:
        table.add_column(title, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*row)
    return table


def leakage_table(result: dict[str, Any]) -> Table | Text:
    """The figures without leaked rows, beside those of all rows.

    Args:
        result: the content of `evaluation.json`, with `leakage`.

    Returns:
        The table, at eighty columns; a sentence if no row is leaked.
    """
    about, rows = about_leakage(result["leakage"]), leakage_rows(result)
    if not rows:
        return Text(about)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=Text(about), caption_justify="left")
    for title in HEADING:
        table.add_column(title, justify="right" if title in HEADING[2:] else "left")
    for row in rows:
        table.add_row(*row)
    return table


def curve_table(title: str, curve: Mapping[str, Any]) -> Table:
    """What each checkpoint or rerun of a run gained and forgot, and which one is recommended.

    Args:
        title: of the table.
        curve: `checkpoints` or `how_to_keep` of `evaluation.json`.

    Returns:
        The table, at eighty columns.
    """
    headings, *rows = curve_rows(curve)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=title,
        title_justify="left",
        caption=about_curve(curve),
        caption_justify="left",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row, style=f"bold {GOOD}" if row[-1] == "recommended" else "")
    return table


def gate_table(gate: dict[str, Any]) -> Table:
    """Each limit of a gate, with its figure and why it is met or not.

    Args:
        gate: of `evaluation.json`.

    Returns:
        The table, at eighty columns.
    """
    verdict = "The gate is passed." if gate["passed"] else "The gate is not passed."
    undecided = any(limit["outcome"] == "undecided" for limit in gate["limits"])
    counts = f" A limit that the rows cannot decide counts as: {gate['undecided']}." if undecided else ""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=verdict + counts, caption_justify="left")
    for title in ("limit", "", "why"):
        table.add_column(title)
    styles = {"met": GOOD, "failed": f"bold {BAD}", "undecided": WARNING}
    for limit in gate["limits"]:
        what = f"{'difference of ' if limit['difference'] else ''}{limit['figure']}, {limit['model']}"
        bound = f"≥ {limit['at_least']:g}" if "at_least" in limit else f"≤ {limit['at_most']:g}"
        table.add_row(f"{what} {bound}", Text(limit["outcome"], style=styles[limit["outcome"]]), limit["why"])
    return table


ANSWER_STYLES = (BAD, GOOD, ALSO, THIRD, WARNING)
"""Of the models' answers in the terminal, in order."""


def samples_table(samples: Sequence[dict[str, Any]]) -> Table:
    """For each sample: the question, the expected answer if there is one, and each model's answer.

    Args:
        samples: with `prompt`, `answers` by model, and perhaps `expected`.

    Returns:
        The table.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for sample in samples:
        table.add_row("question", Text(_short(sample["prompt"]), style="bold"))
        if "expected" in sample:
            table.add_row("expected", Text(_short(sample["expected"])))
        for index, (model, answer) in enumerate(sample["answers"].items()):
            style = ANSWER_STYLES[index % len(ANSWER_STYLES)]
            table.add_row(model, Text(_short(answer) or "(nothing)", style=style))
        table.add_row("", "")
    return table


def merge_table(trained_loss: float, ways: Sequence[Any], chosen: str) -> Table:
    """What each way of merging costs.

    Args:
        trained_loss: held-out loss of the model as it was trained (nats per loss token or prediction).
        ways: with `into`, `loss` and `divergence`.
        chosen: `into` of the way that was saved.
    """
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption="Held-out loss and divergence, KL(trained ‖ merged), in nats. The base was quantized in training.",
        caption_justify="left",
    )
    for title in ("merged into", "loss", "vs. trained", "divergence", ""):
        table.add_column(title, justify="left" if title in ("merged into", "") else "right")
    for way in ways:
        mark = "saved" if way.into == chosen else ""
        change = f"{way.loss - trained_loss:+.4f}"
        table.add_row(f"{way.into} weights", f"{way.loss:.4f}", change, f"{way.divergence:.2g}", mark)
    return table


def methods_table(catalog: dict[str, Any]) -> Table:
    """What `tunesmith.list_methods` returns, at eighty columns."""
    peft_types = ", ".join(catalog["peft_types"])
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_lines=True,
        title=f"On {catalog['base']} ({count(catalog['parameters'])} parameters), with each method's defaults",
        title_justify="left",
        caption=f"Also by PEFT's names, as method: {{kind: peft, peft_type: …}}: {peft_types}. docs/matrix.md shows "
        "what works at which precision.",
        caption_justify="left",
    )
    table.add_column("kind", no_wrap=True, style="bold")
    table.add_column("trains", justify="right", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("what it does, and when to choose it")
    for method in catalog["methods"]:
        text = Text.assemble((method["formula"], "italic"), "\n", method["choose"])
        table.add_row(method["kind"], count(method["trained_parameters"]), f"{method['learning_rate']:.0e}", text)
    return table


def bases_table(bases: Sequence[dict[str, Any]]) -> Table:
    """What `tunesmith.models.bases.list_bases` returns, at eighty columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True, style="bold")
    for title in ("weights", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("license", "source"):
        table.add_column(title)
    table.add_column("here", no_wrap=True)
    for base in bases:
        hub = None if base["hub"] is None else base["hub"].split("/")[0]
        package = None if base["package"] is None else base["package"].split("=")[0]
        source = " or ".join(filter(None, (hub, package))) or "Tunesmith"
        here = Text("yes", GOOD) if base["here"] else ""
        table.add_row(base["name"], count(base["parameters"]), size(base["bytes"]), base["license"], source, here)
    return table


def _short(text: str, length: int = 300) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= length else one_line[: length - 1] + "…"
