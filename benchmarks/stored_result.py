"""Writes what a benchmark found: a JSON file, with the machine, and beside it the table that a page quotes."""

import json
from pathlib import Path
from typing import Any

from train_speed_report import machine


def store(results: Path, found: dict[str, Any], table: str) -> None:
    """Write and print a benchmark's result.

    Args:
        results: the JSON file; the table is beside it, as Markdown.
        found: what was measured.
        table: of it.
    """
    results.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")
    results.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
