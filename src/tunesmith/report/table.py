"""Tables in the terminal: an evaluation with intervals and samples, ways of merging, the methods."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tunesmith.report.formatting import LOSS_UNIT, count, size

Interval = Sequence[float]


def evaluation_table(result: dict[str, Any]) -> Table:
    """Loss, perplexity and metrics of base and tuned model and their difference, each with its 95 % interval.

    Args:
        result: what `tunesmith.evaluation.compare.evaluate` returns.
    """
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{result['rows']:,} held-out rows"
        + (f"; answers to {result['generated_rows']:,} of them" if writes_text(result) else "")
        + ". In brackets: 95 % intervals over rows. A difference is significant if its interval does not contain 0."
        + (" Word overlap: ROUGE-L." if "rouge_l" in result["differences"] else ""),
        caption_justify="left",
    )
    for title in ("", "base", "tuned", "difference"):
        table.add_column(title, justify="left" if not title else "right")
    base, tuned, differences = result["base"], result["tuned"], result["differences"]
    table.add_row(
        describe_loss(result),
        *(_figure(side["loss"], side["loss_interval"], "{:.2f}") for side in (base, tuned)),
        _difference(differences["loss"], "{:+.2f}", better=-1),
    )
    if writes_text(result):
        table.add_row("perplexity", *(f"{side['perplexity']:,.1f}" for side in (base, tuned)), "")
    for name, before in base["metrics"].items():
        after = tuned["metrics"][name]
        template = "{:.0%}" if before.get("unit", "%") == "%" else "{:.2f}"
        table.add_row(
            before["title"],
            *(_figure(score["value"], score["interval"], template) for score in (before, after)),
            _difference(differences[name], template.replace(":", ":+"), better=before.get("better", 1)),
        )
    return table


def writes_text(result: dict[str, Any]) -> bool:
    """Whether the evaluated models generate text, rather than predict something about texts."""
    return "perplexity" in result.get("base", {}) or "perplexity" in result.get("tuned", {})


def describe_loss(result: dict[str, Any]) -> str:
    """The loss with its unit."""
    return f"loss ({result.get('loss_unit', LOSS_UNIT)})"


def samples_table(samples: Sequence[dict[str, Any]]) -> Table:
    """For each sample: the question, the expected answer if there is one, the base's answer and the tuned model's."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for sample in samples:
        table.add_row("question", Text(_short(sample["prompt"]), style="bold"))
        if "expected" in sample:
            table.add_row("expected", Text(_short(sample["expected"])))
        table.add_row("base", Text(_short(sample["base"]) or "(nothing)", style="red"))
        table.add_row("tuned", Text(_short(sample["tuned"]) or "(nothing)", style="green"))
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
        here = Text("yes", "green") if base["here"] else ""
        table.add_row(base["name"], count(base["parameters"]), size(base["bytes"]), base["license"], source, here)
    return table


def _figure(value: float, interval: Interval, template: str) -> str:
    low, high = (template.format(each).removesuffix("%") for each in interval)
    return f"{template.format(value)} [{low}, {high}]"


def _difference(score: dict[str, Any], template: str, better: int) -> Text:
    """Green if significantly better, red if significantly worse."""
    low, high = (better * each for each in score["interval"])
    low, high = sorted((low, high))
    style = "bold green" if low > 0 else "bold red" if high < 0 else ""
    return Text(_figure(score["value"], score["interval"], template), style=style)


def _short(text: str, length: int = 300) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= length else one_line[: length - 1] + "…"
