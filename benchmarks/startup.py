"""How long the command line takes to start: seconds from the shell to the end of commands that have little to do.

    python benchmarks/startup.py                        # two minutes; writes results/startup.json, .md
    python benchmarks/startup.py --beside /tmp/old/src  # takes turns with another source tree

Each is a process of its own, among them `python -c pass`, which is the interpreter's own start, and what every verb
that takes a model must import. The first round, in which bytecode is compiled and files are read from the disk, does
not count; of the others the median does.
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


def made_directory(place: Path) -> None:
    """Rows to show, and a run to list."""
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(20)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = place / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("base: embedded\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    steps = [{"event": "step", "step": n, "total_steps": 90, "loss": 2.0, "seconds": 0.5} for n in range(1, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")


def seconds_of(command: list[str], source: Path, place: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=place, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return seconds


def table(found: dict[str, Any]) -> str:
    beside = found["beside"]
    lines = [f"| command | seconds |{' before |' if beside else ''}", f"|---|---|{'---|' if beside else ''}"]
    for name, seconds in found["seconds"].items():
        lines.append(f"| {name} | {seconds:.2f} |{f' {beside[name]:.2f} |' if beside else ''}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="the src directory of another version")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    sources = [OWN] if options.beside is None else [OWN, options.beside.resolve()]
    taken: dict[Path, dict[str, list[float]]] = {source: {name: [] for name in COMMANDS} for source in sources}
    with tempfile.TemporaryDirectory() as directory:
        made_directory(Path(directory))
        for number in range(options.times + 1):
            for name, command in COMMANDS.items():
                for source in sources:
                    seconds = seconds_of(command, source, Path(directory))
                    if number:
                        taken[source][name].append(seconds)
    medians = [{name: statistics.median(each) for name, each in taken[source].items()} for source in sources]
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "typer", "rich")},
        "python": sys.version.split()[0],
        "seconds": medians[0],
        "beside": medians[1] if len(medians) > 1 else None,
        "all": {str(source): taken[source] for source in sources},
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(found), encoding="utf-8")
    print(table(found), end="")


if __name__ == "__main__":
    main()
