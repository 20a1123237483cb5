"""Memory, quality and speed of the generation engine's caches in fp32 and in int8, on SmolLM2-135M-Instruct.

    tunesmith bases get smollm2-135m-instruct
    python benchmarks/cache_quality.py     # two minutes; writes results/cache_quality.json and .md

The text is from this repository's documentation, in pieces of 1,000 tokens. Quality is log p of each token with one
cache against the other. Speed is that of a step of one sequence with 4,000 tokens in the cache, in the processor's time
on one thread, which other processes hardly change; the best of nine, in which both caches alternate.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stored_result import store

from tunesmith.inference.engine import Engine
from tunesmith.inference.model import load
from tunesmith.inference.paged_model import Piece
from tunesmith.inference.pages import pages_for
from tunesmith.ops.paged_attention import PAGE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cache_quality.json"
BASE = "smollm2-135m-instruct"
PAGES = ("evaluation", "planning")
TOKENS = 1000
CONTEXT = 4000
CACHES = {"fp32": "auto", "int8": "int8"}


def main() -> None:
    torch.set_num_threads(1)
    models = {name: load(BASE, device="cpu", precision="fp32", cache=cache) for name, cache in CACHES.items()}
    text = "\n\n".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)
    ids = models["fp32"].generator.ids(text)
    rows = [(ids[at : at + 1], ids[at + 1 : at + TOKENS]) for at in range(0, len(ids) - TOKENS, TOKENS)]
    logs = {name: np.concatenate(model.generator.scores(rows)) for name, model in models.items()}
    engines = {name: model.generator.paged for name, model in models.items()}
    seconds = step_seconds(engines, ids)
    parts = [
        {
            "cache": name,
            "bytes_per_token": sum(each.bytes_per_page for each in engine.model.caches.values()) / PAGE,
            "nats_per_token": float(-logs[name].mean()),
            "mean_difference": float(np.abs(logs[name] - logs["fp32"]).mean()),
            "largest_difference": float(np.abs(logs[name] - logs["fp32"]).max()),
            "step_seconds": seconds[name],
        }
        for name, engine in engines.items()
    ]
    store(RESULTS, {"tokens": len(logs["fp32"]), "parts": parts}, table(parts))


def step_seconds(engines: dict[str, Engine], ids: list[int]) -> dict[str, float]:
    """The time to compute the next token of a long text."""
    text, pages = (ids * (CONTEXT // len(ids) + 1))[:CONTEXT], list(range(pages_for(CONTEXT + 1)))
    found: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        for at in range(0, CONTEXT, 500):
            engine.model.compute([Piece(text[at : at + 500], at, pages, 500)])
    for _ in range(9):
        for name, engine in engines.items():
            before = time.process_time()
            engine.model.compute([Piece(text[:1], CONTEXT, pages, 0)])
            found[name].append(time.process_time() - before)
    return {name: min(own) for name, own in found.items()}


def table(parts: list[dict[str, Any]]) -> str:
    """Memory, quality and speed by cache."""
    lines = [
        "| cache | bytes per token | nats per token | mean \\|Δ log p\\| | largest | a step after 4,000 tokens |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for part in parts:
        lines.append(
            f"| {part['cache']} | {part['bytes_per_token']:,.0f} | {part['nats_per_token']:.4f} | "
            f"{part['mean_difference']:.4f} | {part['largest_difference']:.2f} | {1000 * part['step_seconds']:.0f} ms |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
