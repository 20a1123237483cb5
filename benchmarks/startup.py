"""Startup time of the command line: seconds from the shell to the end of commands with little work, and to the first
token of an answer.

    python benchmarks/startup.py                        # three minutes; writes results/startup.json, .md
    python benchmarks/startup.py --beside /tmp/old/src  # alternates with another source tree

Each command is a separate process. Among them are `python -c pass`, the interpreter's own start, and the imports of
every command that uses a model. The first round, which compiles bytecode and reads files from disk, does not count;
results are the fastest of the others, since other load can only add time.

The model that answers is SmolLM2-135M-Instruct (`tunesmith bases get smollm2-135m-instruct`), in fp32 on a CPU. A
second process with the same steps says where the time until its first token goes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train_speed_report import machine

from tunesmith.models.bases import get_base

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

FIRST_TOKEN = "`tunesmith generate` with SmolLM2-135M, to the first token"

PARTS = """
import json, sys, time
from tunesmith.cli import app
started = json.loads(sys.argv[2])
marks = {"Python and the command line": time.perf_counter()}
from tunesmith.cli.quick import quick_imports
with quick_imports():
    from tunesmith.inference.generate import Generator
    from tunesmith.inference.model import load
    from tunesmith.inference.sampling import Sampling
marks["imports: torch, transformers, Tunesmith"] = time.perf_counter()
model = load(sys.argv[1])
tokenizer = model.tokenizer
served = model.reference.served_model(model.dtype, model.device)
marks["load the tokenizer and the weights"] = time.perf_counter()
generator = Generator(served, tokenizer)
marks["prepare the engine"] = time.perf_counter()
text = generator.prompt_of([{"role": "user", "content": "Hi"}])
generator.stream(text, Sampling(max_new_tokens=1), lambda piece: None)
marks["prompt and first token"] = time.perf_counter()
times = [started, *marks.values()]
print(json.dumps({name: end - start for name, start, end in zip(marks, times, times[1:])}))
"""
"""Prints the seconds of each part of `tunesmith generate` since the process was started."""


def made_directory(directory: Path) -> None:
    """Rows to show, and a run to list."""
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(20)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = directory / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("base: embedded\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    steps = [{"event": "step", "step": n, "total_steps": 90, "loss": 2.0, "seconds": 0.5} for n in range(1, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")


def environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source)}


def seconds_of(command: list[str], source: Path, directory: Path) -> float:
    """From the start of a command to its end."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=directory, env=environment(source), capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return seconds


def seconds_to_first_token(model: str, source: Path, directory: Path) -> float:
    """From the start of `tunesmith generate` to the first byte that it writes."""
    command = [TUNESMITH, "generate", model, "Hi", "--max-new-tokens", "1"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=directory, env=environment(source), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if process.returncode or not first:
        raise SystemExit(f"{' '.join(command)} wrote nothing.")
    return seconds


def parts_of(model: str, directory: Path) -> dict[str, float]:
    """The seconds of each part of the same, by `PARTS`."""
    command = [sys.executable, "-c", PARTS, model, str(time.perf_counter())]  # one clock for all processes
    done = subprocess.run(command, cwd=directory, env=environment(OWN), capture_output=True, text=True, check=True)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def table(result: dict[str, Any]) -> str:
    beside = result["beside"]
    lines = [f"| command | seconds |{' before |' if beside else ''}", f"|---|---|{'---|' if beside else ''}"]
    for name, seconds in result["seconds"].items():
        lines.append(f"| {name} | {seconds:.2f} |{f' {beside[name]:.2f} |' if beside else ''}")
    lines += ["", "| until the first token | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in result["parts"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="the src directory of another version")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    model = get_base("smollm2-135m-instruct")
    sources = [OWN] if options.beside is None else [OWN, options.beside.resolve()]
    timings: dict[Path, dict[str, list[float]]] = {source: {name: [] for name in COMMANDS} for source in sources}
    for source in sources:
        timings[source][FIRST_TOKEN] = []
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        made_directory(Path(directory))
        for number in range(options.times + 1):
            for name, command in COMMANDS.items():
                for source in sources:
                    seconds = seconds_of(command, source, Path(directory))
                    if number:
                        timings[source][name].append(seconds)
            for source in sources:
                seconds = seconds_to_first_token(model, source, Path(directory))
                if number:
                    timings[source][FIRST_TOKEN].append(seconds)
            measured = parts_of(model, Path(directory))
            if number:
                parts.append(measured)
    fastest = [{name: min(each) for name, each in timings[source].items()} for source in sources]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "typer", "rich")},
        "python": sys.version.split()[0],
        "seconds": fastest[0],
        "beside": fastest[1] if len(fastest) > 1 else None,
        "parts": min(parts, key=lambda each: sum(each.values())),
        "all": {"own" if source == OWN else "beside": timings[source] for source in sources},
        "all_parts": parts,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result), end="")


if __name__ == "__main__":
    main()
