"""What the arena (src/tunesmith/engine/arena.cpp) is worth: a run's peak of memory and its speed, beside the same run
on glibc's heap.

    python benchmarks/arena.py    # three minutes; writes results/arena.json, .md

Both take turns, each run a process of its own; glibc's has its thresholds raised (`engine.allocator`), without which it
is slower. Steps are medians of those after the first two.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from plan_accuracy import make_base, predicted_by, write_text
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "arena.json"
NAMES = ("base", "method", "length", "twice", "optimizer")
RUNS = (
    ("gpt2-30m", "lora", 512, True, "adamw"),
    ("gpt2-30m", "full", 128, False, "adamw"),
)
TIMES = 1


def measured(run: dict[str, Any], directory: Path, with_arena: bool) -> list[float]:
    """Bytes at the peak, and seconds a step; each run tokenizes its rows anew."""
    with tempfile.TemporaryDirectory() as place:
        shutil.rmtree(directory / "run", ignore_errors=True)
        told = predicted_by(run, directory, TUNESMITH_CACHE=place, TUNESMITH_ARENA=str(int(with_arena)))
    if told is None:
        raise SystemExit(1)
    return [told["memory"][1], statistics.median(told["steps"][2:])]


def summary(runs: list[list[float]]) -> dict[str, float]:
    return {"peak_bytes": max(each[0] for each in runs), "seconds": statistics.median(each[1] for each in runs)}


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_text(directory)
        for each in RUNS:
            run = dict(zip(NAMES, each, strict=True))
            make_base(run["base"], directory)
            taken: dict[bool, list[list[float]]] = {True: [], False: []}
            for turn in range(2 * TIMES):
                taken[turn % 2 == 0].append(measured(run, directory, with_arena=turn % 2 == 0))
            found.append(run | {"arena": summary(taken[True]), "glibc": summary(taken[False])})
            print(found[-1], flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n", encoding="utf-8")
    lines = ["| run | peak, arena | glibc | | seconds a step, arena | glibc | |", "|---|---|---|---|---|---|---|"]
    for run in found:
        own, other = run["arena"], run["glibc"]
        named = f"{run['base']}, {run['method']}, {run['length']} tokens{', blocks twice' if run['twice'] else ''}"
        memory = f"{own['peak_bytes'] / 1e6:,.0f} MB | {other['peak_bytes'] / 1e6:,.0f} MB"
        seconds = f"{own['seconds']:.2f} | {other['seconds']:.2f}"
        ratios = [own[name] / other[name] for name in ("peak_bytes", "seconds")]
        lines.append(f"| {named} | {memory} | × {ratios[0]:.2f} | {seconds} | × {ratios[1]:.2f} |")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
