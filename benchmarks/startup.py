"""Startup time of the command line: seconds from the shell to the end of commands with little work.

    python benchmarks/startup.py                        # two minutes; writes results/startup.json, .md
    python benchmarks/startup.py --beside /tmp/old/src  # alternates with another source tree

Each command is a separate process. Among them are `python -c pass`, the interpreter's own start, and the imports of
every command that uses a model. The first round, which compiles bytecode and reads files from disk, does not count;
results are medians of the others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "startup.json"
OWN = Path(__file__).resolve().parents[1] / "src"
TUNESMITH = str(Path(sys.executable).with_name("tunesmith"))
COMMANDS = {
    "`python -c pass`": [sys.executable, "-c", "pass"],
    "`import tunesmith`": [sys.executable, "-c", "import tunesmith"],
    "`from transformers import PreTrainedModel`": [sys.executable, "-c", "from transformers import PreTrainedModel"],
    "`tunesmith --help`": [TUNESMITH, "--help"],
    "`tunesmith runs`": [TUNESMITH, "runs"],
    "`tunesmith schema`": [TUNESMITH, "schema"],
    "`tunesmith methods`": [TUNESMITH, "methods"],
    "`tunesmith data show rows.jsonl`": [TUNESMITH, "data", "show", "rows.jsonl"],
    "`tunesmith generate embedded Hi --max-new-tokens 1`": [
        TUNESMITH, "generate", "embedded", "Hi", "--max-new-tokens", "1"
    ],
}  # fmt: skip


def made_directory(directory: Path) -> None:
    """Rows to show, and a run to list."""
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(20)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = directory / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("base: embedded\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    steps = [{"event": "step", "step": n, "total_steps": 90, "loss": 2.0, "seconds": 0.5} for n in range(1, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")


def seconds_of(command: list[str], source: Path, directory: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return seconds


def table(result: dict[str, Any]) -> str:
    beside = result["beside"]
    lines = [f"| command | seconds |{' before |' if beside else ''}", f"|---|---|{'---|' if beside else ''}"]
    for name, seconds in result["seconds"].items():
        lines.append(f"| {name} | {seconds:.2f} |{f' {beside[name]:.2f} |' if beside else ''}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="the src directory of another version")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    sources = [OWN] if options.beside is None else [OWN, options.beside.resolve()]
    timings: dict[Path, dict[str, list[float]]] = {source: {name: [] for name in COMMANDS} for source in sources}
    with tempfile.TemporaryDirectory() as directory:
        made_directory(Path(directory))
        for number in range(options.times + 1):
            for name, command in COMMANDS.items():
                for source in sources:
                    seconds = seconds_of(command, source, Path(directory))
                    if number:
                        timings[source][name].append(seconds)
    medians = [{name: statistics.median(each) for name, each in timings[source].items()} for source in sources]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "typer", "rich")},
        "python": sys.version.split()[0],
        "seconds": medians[0],
        "beside": medians[1] if len(medians) > 1 else None,
        "all": {str(source): timings[source] for source in sources},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result), end="")


if __name__ == "__main__":
    main()
