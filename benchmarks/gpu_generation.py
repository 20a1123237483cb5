"""Tokens per second that a Mistral-7B-sized model writes on a GPU: Tunesmith's engine with and without CUDA graphs, and
transformers' generate.

    python benchmarks/gpu_generation.py                                  under two minutes
    python benchmarks/gpu_generation.py --shape tiny --device cpu        the same code, small, on a CPU

The weights are random, in bf16 (fp32 on a CPU), created on the device. 1, 16 and 64 prompts of 256 tokens at once, 128
new tokens each, greedy; the time of the prompts is included. Each figure is the best of two, after a shorter run. What
does not fit into the time budget is left out and reported. Writes gpu_generation.json and gpu_generation.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_speed import SHAPES, synchronize
from train_speed import RESULTS

AT_ONCE = (1, 16, 64)
RUNS = 2

Write = Callable[[int, int], int]
"""Writes answers: prompts at once, new tokens for each; returns how many tokens were written."""


def random_model(shape: str, device: str) -> Any:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        **SHAPES[shape], max_position_embeddings=4096, sliding_window=None, eos_token_id=None, pad_token_id=None
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Different ones, so that none is in the cache of another."""
    return [[(7 * position + 31 * number + 3) % vocabulary for position in range(length)] for number in range(count)]


def with_transformers(model: Any, length: int) -> Write:
    import torch

    def write(count: int, new: int) -> int:
        ids = torch.tensor(prompts(count, length, model.config.vocab_size), device=model.device)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0
        )
        return int(out.numel() - ids.numel())

    return write


def with_tunesmith(paged: Any, length: int, cuda_graphs: bool) -> Write:
    from tunesmith.inference.engine import Engine
    from tunesmith.inference.request import Request
    from tunesmith.inference.sampling import Sampling

    engine = Engine(paged, cuda_graphs=cuda_graphs)

    def write(count: int, new: int) -> int:
        engine.pages.forget_all()
        requests = [Request(ids, Sampling(new)) for ids in prompts(count, length, paged.vocabulary)]
        engine.run(requests)
        if engine.graphs is not None and engine.graphs.failure:
            raise RuntimeError(f"no graphs: {engine.graphs.failure}")
        return sum(len(request.tokens) for request in requests)

    return write


def engines(model: Any, length: int) -> Iterator[tuple[str, Write]]:
    """transformers first: Tunesmith replaces the model's layers."""
    from tunesmith.inference.paged_model import paged_model

    yield "transformers", with_transformers(model, length)
    paged = paged_model(model)
    assert paged is not None
    yield "tunesmith without graphs", with_tunesmith(paged, length, cuda_graphs=False)
    yield "tunesmith", with_tunesmith(paged, length, cuda_graphs=True)


def tokens_per_second(write: Write, count: int, new: int, device: str) -> float:
    write(count, min(4, new))
    best = 0.0
    for _ in range(RUNS):
        synchronize(device)
        started = time.perf_counter()
        written = write(count, new)
        synchronize(device)
        best = max(best, written / (time.perf_counter() - started))
    return best


def bytes_per_second(device: str) -> float:
    """What the device reads and writes in a copy."""
    import torch

    source = torch.ones(2**28 if device == "cuda" else 2**22, device=device)
    copy, best = torch.empty_like(source), 0.0
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        copy.copy_(source)
        synchronize(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure that fits into the time budget."""
    end = time.monotonic() + options.budget
    model = random_model(options.shape, options.device)
    weights = sum(own.nbytes for own in model.parameters()) - model.get_input_embeddings().weight.nbytes
    rate = bytes_per_second(options.device)
    rows: list[dict[str, Any]] = []
    for engine, write in engines(model, options.length):
        for count in AT_ONCE:
            row: dict[str, Any] = {"engine": engine, "at once": count}
            if time.monotonic() > end:
                row["left out"] = "the time budget was used up"
            else:
                try:
                    row["tokens_per_second"] = tokens_per_second(write, count, options.new, options.device)
                except RuntimeError as error:
                    row["failed"] = str(error)[-300:]
            rows.append(row)
            print(row, flush=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "shape": options.shape,
        "device": options.device,
        "prompt_tokens": options.length,
        "new_tokens": options.new,
        "bytes_per_second": rate,
        "bound_of_one": rate / weights,
        "found": rows,
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    found = {(row["engine"], row["at once"]): row.get("tokens_per_second") for row in results["found"]}
    lines = [
        f"| tokens per second | {' | '.join(f'{count} at once' for count in AT_ONCE)} |",
        "|---|" + "---:|" * len(AT_ONCE),
    ]
    for engine in dict.fromkeys(row["engine"] for row in results["found"]):
        figures = (found[engine, count] for count in AT_ONCE)
        lines.append(f"| {engine} | {' | '.join('–' if each is None else f'{each:,.0f}' for each in figures)} |")
    bound = (
        f"Reading the weights once per token allows {results['bound_of_one']:,.0f} tokens per second for one request."
    )
    return "\n".join([*lines, "", bound]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--budget", type=float, default=80, help="seconds for all figures together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = measured(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_generation.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "gpu_generation.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
