"""The `compare.yaml` that the advice ends in, with comments on what to fill in."""

from collections.abc import Mapping
from typing import Any

from tunesmith.comparing.recommendation import MARGIN
from tunesmith.comparing.spec import Comparison
from tunesmith.comparing.ways import WAYS
from tunesmith.config.strict_file import checked_values
from tunesmith.config.yaml_text import parse_yaml, to_yaml

ROWS_FILE, DOCUMENTS, PROMPT = "rows.jsonl", "documents", "prompt.yaml"
"""Names to be replaced by the user's own."""


def comparison_file(advice: Mapping[str, Any], name: str) -> str:
    """The text of the file.

    Args:
        advice: what `advise` returns.
        name: of the file.

    Returns:
        YAML that `Comparison.load` reads once the rows, documents and prompts it names are there.
    """
    text = "".join(_lines(advice, name))
    checked_values(Comparison, parse_yaml(text, name), name)
    return text


def _lines(advice: Mapping[str, Any], name: str) -> list[str]:
    answers, ways = advice["answers"], [WAYS[way] for way in advice["compare"]]
    label, held_out = advice["rows_to_label"], advice["held_out_rows"]
    start = f"start with {advice['way']}" if advice["way"] else "no way keeps the limits"
    lines = [
        f"# By `tunesmith advise`. Published figures say: {start}. None is measured on your data.\n",
        f"# Fill in what says so, then: tunesmith compare {name}\n\n",
        to_yaml({"base": answers["base"]}),
        "data:\n",
        f"  train: [{ROWS_FILE}]  # fill in: questions with their answers, about {label:,} rows\n",
        f"  held_out: {held_out / label:.2f}  # about {held_out:,} rows, which show a difference of ten points\n",
    ]
    if any(way.documents for way in ways):
        lines.append(f"documents: {DOCUMENTS}  # fill in: the directory of your documents\n")
    if any(way.prompt for way in ways):
        lines.append(f"prompts: [{PROMPT}]  # fill in: files of prompts\n")
    lines += [
        f"ways: [{', '.join(advice['compare'])}]\n",
        f"rows: {max(200, held_out)}\n",
        f"margin: {MARGIN}  # a difference that is not worth a more costly way\n",
        *_limits(answers),
        *_prices(advice),
        *_servers(answers),
    ]
    return lines


def _limits(answers: Mapping[str, Any]) -> list[str]:
    if answers["latency"] is None:
        return ["# limits: {latency_p95: 2.0}  # seconds\n"]
    return [f"limits: {{latency_p95: {answers['latency']:g}}}  # seconds\n"]


def _prices(advice: Mapping[str, Any]) -> list[str]:
    hour, requests = advice["prices"]["device_hour"], advice["prices"]["requests"]
    machine = "  # device_hour: 1.0  # fill in, to count in money: this machine's price\n"
    stated = machine if hour is None else f"  device_hour: {hour:g}  # US dollars, from the planner's table\n"
    return [
        "prices:\n",
        f"  requests: {requests}  # of a year\n",
        stated,
        "  # labeled_row: 0.5  # fill in: of a row that a person writes\n",
    ]


def _servers(answers: Mapping[str, Any]) -> list[str]:
    if not answers["hosted"]:
        return []
    prices = [
        f"#    {name}: {answers[name]:g}\n" if answers[name] is not None else f"#    {name}: 1.0  # fill in\n"
        for name in ("price_in", "price_out")
    ]
    return [
        "# A hosted model, which your data may go to. Fill in, and remove the signs:\n",
        "# servers:\n",
        "#  - url: https://HOST/v1#MODEL\n",
        *prices,
    ]
