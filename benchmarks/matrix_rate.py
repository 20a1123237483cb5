"""This machine's own rate of matrix products, in the shapes of the reference task.

    python benchmarks/matrix_rate.py --out RATE.json [--device cuda] [--dtype bfloat16]

For each shape, products C = A Bᵀ into preallocated memory, for about a second; the rate is 2·m·k·n over the median of
their times. Needs torch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

TOKENS = 2_048
SHAPES = {
    "gate, up": (TOKENS, 768, 2048),
    "down": (TOKENS, 2048, 768),
    "query, output": (TOKENS, 768, 768),
    "key, value": (TOKENS, 768, 256),
}
"""(rows, inner, columns) of the layers' products."""


def rate(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOPs per second of the clock, by the median product."""
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype)
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        started = clock()
        torch.mm(left, right.t(), out=product)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return 2 * rows * inner * columns / statistics.median(times[len(times) // 5 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    rates = {name: rate(shape, dtype, options.device) for name, shape in SHAPES.items()}
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "flop_per_second": rates}
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
