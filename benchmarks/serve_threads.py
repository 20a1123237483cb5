"""How the engine's OpenMP threads wait for each other when a server computes on another thread than it has loaded on.

    python benchmarks/serve_threads.py     # a minute on a quiet machine; writes results/serve_threads.json, .md

SmolLM2-135M-Instruct, one stream, two OpenMP threads. Each setting in a process of its own: whether the loading thread
keeps its workers (`ops.native.end_workers`), and how often a worker looks for the next parallel loop before it sleeps
(GOMP_SPINCOUNT). A worker that sleeps and is woken is two voluntary context switches, on a quiet machine and on a busy
one; the times are of this machine as it is, so the load average is beside them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

from stored_result import store

RESULTS = Path(__file__).parent / "results" / "serve_threads.json"
BASE = "smollm2-135m-instruct"
TOKENS, ROUNDS = 10, 2
SETTINGS = (("kept", 300_000), ("ended", 300_000), ("ended", 20_000), ("ended", 5_000))
"""What becomes of the loading thread's workers, and GOMP_SPINCOUNT; 300,000 is libgomp's default."""


def one(workers: str) -> None:
    """Load here, compute on another thread, and print the figures of each round."""
    import tunesmith
    from tunesmith.ops import native

    generator = tunesmith.load(BASE).generator
    if workers == "ended":
        native.end_workers()
    rounds: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: rounds.extend(measured(generator) for _ in range(ROUNDS)))
    thread.start()
    thread.join()
    print(json.dumps({name: mean(each[name] for each in rounds) for name in rounds[0]}))


def measured(generator: Any) -> dict[str, float]:
    """Of a token of an answer: seconds, processor seconds, and voluntary context switches."""
    from tunesmith.inference.request import Request
    from tunesmith.inference.sampling import Sampling

    engine, request = generator.engine, Request(list(range(5, 40)), Sampling(TOKENS + 1))
    engine.submit(request)
    while not request.tokens:
        engine.step()
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    while not engine.is_idle:
        engine.step()
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - begun
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    count = len(request.tokens) - 1
    return {
        "seconds": seconds / count,
        "processor": busy / count,
        "switches": (after.ru_nvcsw - before.ru_nvcsw) / count,
    }


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| the loading thread's workers | looks before it sleeps | context switches per token | ms per token | "
        "processor ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for each in found["settings"]:
        times = f"{1e3 * each['seconds']:,.0f} | {1e3 * each['processor']:.0f}"
        lines.append(f"| {each['workers']} | {each['spins']:,} | {each['switches']:.0f} | {times} |")
    return "\n".join([*lines, "", f"{os.cpu_count()} cores; load average {found['load']:.0f}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    settings = []
    for workers, spins in SETTINGS:
        environment = {**os.environ, "GOMP_SPINCOUNT": str(spins), "OMP_NUM_THREADS": "2"}
        if spins == 300_000:
            del environment["GOMP_SPINCOUNT"]
        command = [sys.executable, __file__, "--one", workers]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        settings.append({"workers": workers, "spins": spins, **json.loads(done.stdout.splitlines()[-1])})
        print(settings[-1], flush=True)
    found = {"load": os.getloadavg()[0], "settings": settings}
    store(RESULTS, found, table(found))


if __name__ == "__main__":
    main()
