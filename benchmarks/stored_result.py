"""What benchmarks store: a JSON file, with the machine, or a line for each trial; and the table that a page quotes."""

import json
import tempfile
from collections.abc import Callable, Mapping
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


def measure_and_store(
    results: Path, measured: Callable[[Path], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> None:
    """Measure in a temporary directory, and store what was found.

    Args:
        results: as in `store`.
        measured: measures, with a directory for its files.
        table: makes the table of what was measured.
    """
    with tempfile.TemporaryDirectory() as directory:
        found = measured(Path(directory))
    store(results, found, table(found))


def stored_trials(results: Path) -> list[dict[str, Any]]:
    """The trials that were finished before.

    Args:
        results: a file with a line of JSON for each; none if it does not exist.
    """
    return list(map(json.loads, results.read_text(encoding="utf-8").splitlines())) if results.exists() else []


def add_trial(results: Path, trial: Mapping[str, Any]) -> None:
    """Store a trial as one more line."""
    with results.open("a", encoding="utf-8") as out:
        out.write(json.dumps(trial) + "\n")


def described_machine(on: Mapping[str, Any]) -> str:
    """Processor, instructions and cores, as tables name them.

    Args:
        on: of `machine`.
    """
    return f"{on['processor']}, {', '.join(on['instructions'])}, {on['cores']} cores"
