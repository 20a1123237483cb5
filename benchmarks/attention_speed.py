"""How fast is attention over packed documents, forward and backward, beside PyTorch's kernel on the same documents?

    python benchmarks/attention_speed.py     # a minute; writes results/attention_speed.json, .md

One thread, and one document on all threads. PyTorch's kernel runs as it does without a compiler (`TUNESMITH_NATIVE=0`):
on documents of the same padded length in one batch. Processor time, the median over rounds in which all settings take
turns: what else runs on the machine has a smaller effect on it. The rate counts only the products of queries with keys
that they see; beside it is that of a product of two large matrices.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from matrix_rate import rate
from stored_result import described_machine, store
from torch import Tensor
from train_speed_report import machine

from tunesmith.models.precision import bf16_speedup
from tunesmith.ops import native
from tunesmith.ops.branched_attention import branched_attention
from tunesmith.ops.document_attention import document_attention

RESULTS = Path(__file__).parent / "results" / "attention_speed.json"
ROUNDS = 9
BACKWARD = 2.5
"""Products of the backward pass by those of the forward pass: five instead of two, since scores are computed again."""


@dataclass(frozen=True)
class Documents:
    """What is attended to.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        dim: of a head.
        lengths: of the documents, in tokens.
        parents: which earlier document each continues, -1 for none; empty: none does.
    """

    heads: int
    kv_heads: int
    dim: int
    lengths: list[int]
    parents: list[int]

    @property
    def operations(self) -> int:
        """Of the forward pass: products of queries with the keys that they see, and of probabilities with values."""
        before = [self.lengths[parent] if parent >= 0 else 0 for parent in self.parents] or [0] * len(self.lengths)
        pairs = sum(own * (own + 1) // 2 + own * more for own, more in zip(self.lengths, before, strict=True))
        return 4 * self.heads * self.dim * pairs


CASES = {
    "16 documents of 60 tokens, 12 heads of 64": Documents(12, 12, 64, [60] * 16, []),
    "4 documents of 100 to 400 tokens, 9 and 3 heads of 64": Documents(9, 3, 64, [300, 100, 200, 400], []),
    "a prompt of 185 tokens with two answers of 348 and 308, 12 heads of 64": Documents(
        12, 12, 64, [185, 348, 308], [-1, 0, 0]
    ),
    "2 documents of 512 tokens, 16 and 8 heads of 128": Documents(16, 8, 128, [512] * 2, []),
    "a document of 2,048 tokens, 12 heads of 64": Documents(12, 12, 64, [2048], []),
}

SHARED = "a document of 2,048 tokens, 8 heads of 64 and one head of keys"
"""What all threads share."""


def step_of(documents: Documents, dtype: torch.dtype) -> Callable[[], Any]:
    """A forward and a backward pass on random numbers."""
    generator = torch.Generator().manual_seed(0)

    def rows(heads: int) -> Tensor:
        """In the layout of a projection's output."""
        drawn = torch.randn(1, sum(documents.lengths), heads, documents.dim, generator=generator)
        return drawn.to(dtype).transpose(1, 2)

    inputs = [rows(heads).requires_grad_() for heads in (documents.heads, documents.kv_heads, documents.kv_heads)]
    up, scale = rows(documents.heads), documents.dim**-0.5

    def step() -> Any:
        q, k, v = inputs
        if documents.parents:
            out = branched_attention(q, k, v, documents.lengths, documents.parents, scale)
        else:
            out = document_attention(q, k, v, documents.lengths, scale)
        return torch.autograd.grad(out, inputs, up)

    return step


def measured(dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Seconds of a forward and a backward pass, by case: `native` and `pytorch`."""
    steps = {name: step_of(documents, dtype) for name, documents in CASES.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"native": [], "pytorch": []} for name in CASES}
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            for way, context in (
                ("native", nullcontext()),
                ("pytorch", patch.object(native, "library", lambda: None)),
            ):
                with context:
                    before = time.thread_time()
                    step()
                    if number:  # the first round warms up
                        times[name][way].append(time.thread_time() - before)
    return {name: {way: median(each) for way, each in ways.items()} for name, ways in times.items()}


def shared_seconds(dtype: torch.dtype) -> dict[str, float]:
    """Of `SHARED` by the clock on the wall, the median: on one thread, and on all."""
    step, seconds = step_of(Documents(8, 1, 64, [2048], []), dtype), {}
    for way, threads in (("one", 1), ("all", machine()["cores"])):
        torch.set_num_threads(threads)
        times = []
        for _ in range(ROUNDS + 1):
            before = time.perf_counter()
            step()
            times.append(time.perf_counter() - before)
        seconds[way] = median(times[1:])
    torch.set_num_threads(1)
    return seconds


def table(found: dict[str, Any], date: str) -> str:
    """As Markdown."""
    lines = []
    for precision, result in found.items():
        limit = result["matrix_rate"]
        for name, seconds in result["seconds"].items():
            reached = (1 + BACKWARD) * CASES[name].operations / seconds["native"]
            lines.append(
                f"| {name} | {precision} | {1e3 * seconds['native']:.1f} | {1e3 * seconds['pytorch']:.1f} | "
                f"{seconds['pytorch'] / seconds['native']:.1f} × | {reached / 1e9:.0f} | "
                f"{100 * reached / limit:.0f}% |\n"
            )
    shared = " and ".join(
        f"{1e3 * result['shared']['all']:.1f} ms in {name} ({1e3 * result['shared']['one']:.1f} ms on one thread)"
        for name, result in found.items()
    )
    limits = " and ".join(f"{result['matrix_rate'] / 1e9:.0f} in {name}" for name, result in found.items())
    return (
        f"Causal attention, forward and backward, one thread on {described_machine(machine())}, torch "
        f"{torch.__version__}, {date}; medians of {ROUNDS} rounds. Large products of matrices run at {limits}, in "
        "GFLOP/s.\n\n"
        "| documents | precision | ms | PyTorch's kernel, ms | faster | GFLOP/s | of large products |\n"
        "|---|---|---:|---:|---:|---:|---:|\n"
        + "".join(lines)
        + f"\nBy the wall clock, {SHARED} takes {machine()['cores']} threads {shared}.\n"
    )


def main() -> None:
    torch.set_num_threads(1)
    date = datetime.now(UTC).date().isoformat()
    dtypes = {"fp32": torch.float32}
    if bf16_speedup("cpu") > 1:  # without instructions for it, nobody computes in bf16
        dtypes["bf16"] = torch.bfloat16
    found = {
        name: {
            "matrix_rate": rate((1536, 1536, 1536), dtype, "cpu", clock=time.thread_time),
            "seconds": measured(dtype),
            "shared": shared_seconds(dtype),
        }
        for name, dtype in dtypes.items()
    }
    store(RESULTS, {"date": date, "precisions": found}, table(found, date))


if __name__ == "__main__":
    main()
