"""Arguments and report of every peer. Standard library only, to run in each peer's environment."""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RANK = 16
ALPHA = 32
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0
MAX_LENGTH = 1_024  # tokens
SEED = 0
VIRTUAL_TOKENS = 20
BETA = 0.1
GRPO_PROMPTS, GRPO_GROUP, GRPO_TOKENS = 4, 8, 64  # of a step: prompts, answers to each, and the most tokens of one

STARTED = float(os.environ.get("BENCHMARK_STARTED", time.time()))
"""When the driver started this process, in seconds since the epoch."""


def arguments(description: str, settings: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model directory")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL of chat messages, in training order")
    parser.add_argument("--plan", type=Path, help="rows of each step; default: plan.json beside the rows")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--setting", choices=settings, required=True)
    parser.add_argument("--method", default="lora", help="lora, full, qlora, ia3 or prefix, if the peer has it")
    parser.add_argument("--adapter", type=Path, help="a PEFT adapter to start from, if the peer can")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parsed = parser.parse_args()
    parsed.plan = parsed.plan or parsed.rows.with_name("plan.json")
    return parsed


def read_rows(path: Path) -> list[list[dict[str, str]]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["messages"] for line in file]


@dataclass
class Report:
    """Records steps as they end. A step starts at the end of the previous one, so fetching its rows counts.

    Attributes:
        plan: the reference work's plan (`plan.json`).
        description: the setting in words.
        before: (rows, seconds) of each batch of what is computed before the first step but the first: the reference.
    """

    plan: dict[str, Any]
    description: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds_to_first_step: float | None = None
    before: list[tuple[int, float]] = field(default_factory=list)
    _last: float = 0.0
    _last_cpu: float = 0.0

    def begin(self) -> None:
        """Start of the first step."""
        self.seconds_to_first_step = time.time() - STARTED
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def step(self, loss: float, rows: Sequence[int] | None = None, counts: tuple[int, int] | None = None) -> None:
        """End of a step.

        Args:
            loss: mean over its loss tokens, in nats.
            rows: its rows, or
            counts: its non-padding tokens and loss tokens, if the peer packs rows in its own way.
        """
        now = time.perf_counter()
        if rows is not None:
            counts = (
                sum(self.plan["tokens"][row] for row in rows),
                sum(self.plan["loss_tokens"][row] for row in rows),
            )
        assert counts is not None
        self.steps.append(
            {
                "seconds": now - self._last,
                "cpu_seconds": time.process_time() - self._last_cpu,
                "tokens": counts[0],
                "loss_tokens": counts[1],
                "loss": loss,
                "rows": None if rows is None else list(rows),
            }
        )
        last = self.steps[-1]
        print(
            f"step {len(self.steps)}: {last['seconds']:.2f} s ({last['cpu_seconds']:.2f} s of CPU time), "
            f"{counts[0]} tokens, loss {loss:.4f}",
            flush=True,
        )
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def write(self, path: Path, packages: Sequence[str]) -> None:
        path.write_text(
            json.dumps(
                {
                    "description": self.description,
                    "versions": {"python": sys.version.split()[0], **_versions(packages)},
                    "seconds_to_first_step": self.seconds_to_first_step,
                    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux: KiB
                    "before": self.before,
                    "steps": self.steps,
                },
                indent=1,
            )
        )


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
