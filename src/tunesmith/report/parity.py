"""A comparison of two forms of a model: a table in the terminal, and a section of a model card."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def parity_markdown(result: dict[str, Any] | None, unproven: str | None) -> str:
    """The parity section of a model card, in Markdown.

    Args:
        result: the content of `parity.json`.
        unproven: why there is none.
    """
    if result is None:
        return f"Not measured: {unproven}."
    lines = [
        f"Compared with the model in Tunesmith at {result['positions']:,} tokens of {result['rows']:,} texts "
        f"({result['rows_from']}), read by {result['program']}. KL and loss are in nats per token. In brackets: 95 % "
        "intervals over rows.",
        "",
        "| | model | exported | difference |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _rows(result)),
        "",
        f"Limits for {result['kind']}: same most likely token ≥ {result['limits']['top1_agreement']:.0%}, "
        f"KL ≤ {result['limits']['kl']} nats per token.",
    ]
    if result.get("accepted_loss"):
        lines += ["", f"**Accepted in spite of the limits** (`--accept-loss`): {'; '.join(result['failed'])}."]
    return "\n".join(lines)


def parity_table(result: dict[str, Any]) -> Table:
    """The content of `parity.json`.

    Args:
        result: what `tunesmith.parity` returns.
    """
    verdict = "Within the limits" if result["passed"] else f"Beyond the limits: {'; '.join(result['failed'])}"
    notes = [
        f"{result['rows']:,} texts with {result['positions']:,} tokens ({result['rows_from']}), read by "
        f"{result['program']}. KL and loss: nats per token. In brackets: 95 % intervals over rows. {verdict}"
        f"{'' if result['failed'] else ' for ' + result['kind']}.",
        *(f"Not checked: {what}." for what in result["not_checked"]),
        *(f"The chat template rejects {what}." for what in result["not_rendered"]),
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=" ".join(notes), caption_justify="left")
    for title in ("", "model", "form", "difference"):
        table.add_column(title, justify="right" if title else "left")
    for row in _rows(result):
        table.add_row(*row)
    return table


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a table: what, the model, its form, the difference."""
    loss, ids = result["loss"], result["token_ids_equal"]
    equal = {True: "equal", False: "different", None: "not reported"}[ids]
    rows: list[tuple[str, ...]] = [
        (f"token ids, {result['chats']} chats", "", "", equal),
        (
            "same likeliest token",
            "",
            "",
            _figure(result["top1_agreement"], result["top1_agreement_interval"], "{:.1%}"),
        ),
        ("KL", "", "", _figure(result["kl"], result["kl_interval"], "{:.2g}")),
        (
            "loss",
            *(_figure(loss[side], loss[f"{side}_interval"], "{:.3f}") for side in "ab"),
            _figure(loss["difference"], loss["difference_interval"], "{:+.3f}"),
        ),
    ]
    for metric in result.get("metrics", {}).values():
        rows.append(
            (
                metric["title"],
                *(_figure(metric[side]["value"], metric[side]["interval"], "{:.0%}") for side in "ab"),
                _figure(metric["difference"]["value"], metric["difference"]["interval"], "{:+.0%}"),
            )
        )
    if "answers" in result:
        rows.append(("same answers", "", "", f"{result['same_answers']} of {result['answers']}"))
    return rows


def _figure(value: float, interval: Sequence[float], template: str) -> str:
    low, high = (template.format(each).removesuffix("%") for each in interval)
    return f"{template.format(value)} [{low}, {high}]"
