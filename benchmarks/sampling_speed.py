"""How long choosing a token takes, beside `torch.multinomial`, which takes a random number for each token there is.

    python benchmarks/sampling_speed.py     # half a minute; writes results/sampling_speed.json, .md

SmolLM2-135M-Instruct's scores after each of 64 tokens (49,152 each), one thread. Processor time, the median over rounds
in which all settings take turns: what else runs on the machine has a smaller effect on it.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from stored_result import described_machine, store
from train_speed_report import machine

import tunesmith
from tunesmith.inference.sampling import Sampling, chosen, random_stream

RESULTS = Path(__file__).parent / "results" / "sampling_speed.json"
BASE = "smollm2-135m-instruct"
TEXT = "The train from Lyon to Turin was late, so " * 10
ROWS, ROUNDS = 64, 9
SETTINGS = {
    "temperature 1": Sampling(temperature=1.0),
    "top_p 0.9": Sampling(temperature=1.0, top_p=0.9),
    "top_k 50": Sampling(temperature=1.0, top_k=50),
    "min_p 0.05": Sampling(temperature=1.0, min_p=0.05),
}


def measured() -> dict[str, float]:
    """Microseconds of the processor for a token, by how it is chosen."""
    torch.set_num_threads(1)
    model = tunesmith.load(BASE, device="cpu", precision="fp32")
    ids = model.tokenizer(TEXT, return_tensors="pt")["input_ids"][:, :ROWS]
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0].float()
    streams = [random_stream(0, row) for row in range(ROWS)]

    def by(sampling: Sampling) -> Callable[[int], Any]:
        return lambda row: chosen(logits[row], sampling, [1], [], streams[row])

    ways: dict[str, Callable[[int], Any]] = {
        "temperature 1, torch.multinomial": lambda row: int(
            torch.multinomial(torch.softmax(logits[row], -1), 1, generator=streams[row])
        ),
        **{name: by(sampling) for name, sampling in SETTINGS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before = time.thread_time()
            for row in range(ROWS):
                way(row)
            times[name].append((time.thread_time() - before) / ROWS * 1e6)
    return {name: median(each) for name, each in times.items()}


def table(found: dict[str, float], date: str) -> str:
    """As Markdown."""
    lines = [f"| {name} | {value:,.0f} | {1e6 / value:,.0f} |\n" for name, value in found.items()]
    return (
        f"SmolLM2-135M-Instruct's scores of {ROWS} texts, fp32, one thread on {described_machine(machine())}, "
        f"torch {torch.__version__}, {date}; medians of {ROUNDS} rounds.\n\n"
        "| a token is chosen with | µs of the processor | tokens/s |\n|---|---:|---:|\n" + "".join(lines)
    )


def main() -> None:
    date = datetime.now(UTC).date().isoformat()
    found = measured()
    store(RESULTS, {"date": date, "microseconds": found}, table(found, date))


if __name__ == "__main__":
    main()
