"""What the allocator costs: a run's peak memory and speed with the arena (src/tunesmith/engine/arena.cpp),
compared with the same run on glibc's heap, jemalloc and mimalloc.

    apt-get install libjemalloc2 libmimalloc2.0
    python benchmarks/arena.py    # half an hour; writes results/arena.json, .md; finished runs are skipped

Runs alternate, each in a separate process. `glibc`: with the thresholds that `engine.allocator` raises where there is
no arena. `glibc, one arena`: also with one heap for all threads, and 64 MiB more at each growth (glibc.malloc.* in
GLIBC_TUNABLES). jemalloc and mimalloc are preloaded. A run's time is the median of its steps after the first two. The
table has the fastest of three runs, since other work on the machine only slows a run down, and their highest peak.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_accuracy import make_base, recipe_of, write_text
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "arena.json"
NAMES = ("base", "method", "length", "twice", "optimizer")
RUNS = (
    ("llama-5m", "lora", 1024, False, "adamw"),
    ("llama-5m", "full", 4096, True, "adamw"),
    ("gpt2-30m", "lora", 512, True, "adamw"),
    ("gpt2-30m", "full", 128, False, "adamw"),
    ("gpt2-30m", "qlora", 1024, False, "adamw"),
    ("llama-125m", "lora", 512, False, "adamw"),
)
TIMES = 3
PRECISION = "bf16"
"""Of every run: `auto` is measured in each process, and could differ from one allocator to another."""
TUNABLES = {"arena_max": 1, "mmap_threshold": 2**25, "trim_threshold": 2**31 - 1, "top_pad": 2**26}
LIBRARIES = {"jemalloc": "libjemalloc.so.2", "mimalloc": "libmimalloc.so.2.0"}


def environments(directory: Path) -> dict[str, dict[str, str]]:
    """Environment variables by allocator.

    Args:
        directory: where the preloaded libraries are.
    """
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())
    others = {name: {"TUNESMITH_ARENA": "0", "LD_PRELOAD": str(directory / file)} for name, file in LIBRARIES.items()}
    return {
        "arena": {"TUNESMITH_ARENA": "1"},
        "glibc": {"TUNESMITH_ARENA": "0"},
        "glibc, one arena": {"TUNESMITH_ARENA": "0", "GLIBC_TUNABLES": tunables},
        **others,
    }


def measured(run: dict[str, Any], directory: Path, environment: dict[str, str]) -> list[float]:
    """Peak bytes, and seconds per step, of a separate process; each run tokenizes its rows anew."""
    with tempfile.TemporaryDirectory() as temporary:
        shutil.rmtree(directory / "run", ignore_errors=True)
        command = [sys.executable, __file__, "--run", json.dumps(run), "--directory", str(directory)]
        environment = {**os.environ, "TUNESMITH_CACHE": temporary, **environment}
        out = subprocess.run(command, env=environment, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(out.stderr[-500:])
    line = next(each for each in out.stdout.splitlines() if each.startswith("RESULT "))
    peak, seconds = json.loads(line.removeprefix("RESULT "))
    return [peak, seconds]


def one_run(run: dict[str, Any], directory: Path) -> None:
    """In a separate process: train, print peak bytes and seconds per step."""
    import tunesmith

    recipe = recipe_of(run, directory / run["base"], directory / "text.jsonl")
    recipe["train"]["precision"] = PRECISION
    finished = tunesmith.train(recipe, directory / "run")
    plan = next(event for event in finished.events() if event["event"] == "plan")
    seconds = [event["seconds"] for event in finished.events() if event["event"] == "step"][2:]
    print("RESULT " + json.dumps([plan["measured"]["memory"]["peak_bytes"], statistics.median(seconds)]))


def summary(runs: list[list[float]]) -> dict[str, float]:
    return {"peak_bytes": max(each[0] for each in runs), "seconds": min(each[1] for each in runs)}


def table(runs: list[dict[str, Any]]) -> str:
    """Peak memory and seconds per step by allocator; × is relative to the arena."""
    allocators = [name for name in runs[0] if name not in NAMES]
    lines = [
        f"| run | {' | '.join(allocators)} |",
        f"|---|{'---:|' * len(allocators)}",
    ]
    for run in runs:
        named = f"{run['base']}, {run['method']}, {run['length']} tokens{', checkpointed' if run['twice'] else ''}"
        own, cells = summary(run[allocators[0]]), []
        for name in allocators:
            other = summary(run[name])
            memory, seconds = (other[each] / own[each] for each in ("peak_bytes", "seconds"))
            relative = "" if name == allocators[0] else f" (× {memory:.2f}, × {seconds:.2f})"
            cells.append(f"{other['peak_bytes'] / 1e6:,.0f} MB, {other['seconds']:.2f} s{relative}")
        lines.append(f"| {named} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--libraries", type=Path, default=Path("/usr/lib/x86_64-linux-gnu"), help="of the allocators")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        one_run(json.loads(options.run), options.directory)
    else:
        compare(options.libraries)


def compare(libraries: Path) -> None:
    """Measure what is not measured yet, and write the table."""
    done = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    allocators = environments(libraries)
    stored = done.get("runs", []) if done.get("machine") == machine() else []
    results = [run for run in stored if allocators.keys() <= run.keys()]
    measured_runs = [tuple(run[name] for name in NAMES) for run in results]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_text(directory)
        for each in [run for run in RUNS if run not in measured_runs]:
            run: dict[str, Any] = dict(zip(NAMES, each, strict=True))
            make_base(run["base"], directory)
            measurements: dict[str, list[list[float]]] = {}
            for name, environment in [*allocators.items()] * TIMES:
                measurements.setdefault(name, []).append(measured(run, directory, environment))
            results.append(run | measurements)
            print(table(results[-1:]), flush=True)
            text = json.dumps({"machine": machine(), "runs": results}, indent=1)
            RESULTS.write_text(text + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
