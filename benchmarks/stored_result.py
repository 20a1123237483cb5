"""What benchmarks store: a JSON file, with the machine, or a line for each trial; and the table that a page quotes."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
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


def finished_trials(results: Path, current: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stored trials with the current settings.

    Args:
        results: as `stored_trials` takes them.
        current: settings that a trial has stored; one with others is another trial.
    """
    stored = json.loads(json.dumps(current))
    return [each for each in stored_trials(results) if stored.items() <= each.items()]


def run_trials(
    results: Path,
    current: Mapping[str, Any],
    wanted: Iterable[Mapping[str, Any]],
    trial: Callable[..., dict[str, Any]],
    report: Callable[[], None],
) -> None:
    """Run and store the trials that are not finished.

    Args:
        results: as in `add_trial`.
        current: as in `finished_trials`.
        wanted: what identifies each trial: the arguments of `trial`, which it stores under the same names.
        trial: runs one.
        report: called after each, to write tables and plots again.
    """
    for each in wanted:
        if any(each.items() <= other.items() for other in finished_trials(results, current)):
            continue
        add_trial(results, trial(**each))
        print(f"{', '.join(f'{name} {value}' for name, value in each.items() if value != '')}: done", flush=True)
        report()


def absent(directories: Iterable[Path]) -> str:
    """What to say of the directories that are not there; empty if all are.

    Args:
        directories: that trials need.
    """
    missing = [str(each) for each in directories if not each.is_dir()]
    return f"there is no {' and no '.join(missing)}." if missing else ""


def run_seeds(seeds: int, needed: Iterable[Path], trials: Callable[[int], None]) -> None:
    """Run the trials of each seed.

    Args:
        seeds: how many.
        needed: directories without which it does nothing but say so.
        trials: runs those of one seed.
    """
    if missing := absent(needed):
        print(missing[0].upper() + missing[1:], flush=True)
        return
    for seed in range(seeds):
        trials(seed)


def described_machine(on: Mapping[str, Any]) -> str:
    """Processor, instructions and cores, as tables name them.

    Args:
        on: of `machine`.
    """
    return f"{on['processor']}, {', '.join(on['instructions'])}, {on['cores']} cores"
