"""Benefit of the arena (src/tunesmith/engine/arena.cpp): a run's peak memory and speed, compared with the same run on
glibc's heap.

    python benchmarks/arena.py    # three minutes; writes results/arena.json, .md

Both alternate, each run in a separate process; glibc's thresholds are raised (`engine.allocator`), since it is slower
without. Step times are medians of the steps after the first two.
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
    """Peak bytes, and seconds per step; each run tokenizes its rows anew."""
    with tempfile.TemporaryDirectory() as temporary:
        shutil.rmtree(directory / "run", ignore_errors=True)
        result = predicted_by(run, directory, TUNESMITH_CACHE=temporary, TUNESMITH_ARENA=str(int(with_arena)))
    if result is None:
        raise SystemExit(1)
    return [result["memory"][1], statistics.median(result["steps"][2:])]


def summary(runs: list[list[float]]) -> dict[str, float]:
    return {"peak_bytes": max(each[0] for each in runs), "seconds": statistics.median(each[1] for each in runs)}


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_text(directory)
        for each in RUNS:
            run: dict[str, Any] = dict(zip(NAMES, each, strict=True))
            make_base(run["base"], directory)
            measurements: dict[bool, list[list[float]]] = {True: [], False: []}
            for turn in range(2 * TIMES):
                measurements[turn % 2 == 0].append(measured(run, directory, with_arena=turn % 2 == 0))
            results.append(run | {"arena": summary(measurements[True]), "glibc": summary(measurements[False])})
            print(results[-1], flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n", encoding="utf-8")
    lines = ["| run | peak, arena | glibc | | seconds per step, arena | glibc | |", "|---|---|---|---|---|---|---|"]
    for run in results:
        own, other = run["arena"], run["glibc"]
        named = f"{run['base']}, {run['method']}, {run['length']} tokens{', checkpointed' if run['twice'] else ''}"
        memory = f"{own['peak_bytes'] / 1e6:,.0f} MB | {other['peak_bytes'] / 1e6:,.0f} MB"
        seconds = f"{own['seconds']:.2f} | {other['seconds']:.2f}"
        ratios = [own[name] / other[name] for name in ("peak_bytes", "seconds")]
        lines.append(f"| {named} | {memory} | × {ratios[0]:.2f} | {seconds} | × {ratios[1]:.2f} |")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
