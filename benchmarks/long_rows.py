"""One row of 32,768 tokens on the reference model, within a memory limit.

    python benchmarks/long_rows.py --model benchmarks/results/raw/work-…/model [--tokens 32768] [--limit 6GB]

Trains on a row of this Python's own documentation with LoRA in bf16, and writes results/long_rows.json: how the run
stays within the limit, the process's peak memory, seconds per step.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from train_speed_report import machine

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--limit", default="6GB")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    import tunesmith
    from tunesmith.planner.measure import peak_memory

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer(text * 3, add_special_tokens=False)["input_ids"]
    directory = Path(tempfile.mkdtemp())
    rows = directory / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for start in (0,):
            piece = tokenizer.decode(ids[start : start + options.tokens - 2])
            file.write(json.dumps({"text": piece}) + "\n")
    recipe: dict[str, Any] = {
        "base": str(options.model),
        "data": {
            "train": str(rows), "held_out": 0.0, "max_length": options.tokens, "overflow": "truncate", "cache": False,
        },
        "method": {"kind": "lora", "rank": 16, "alpha": 32},
        "objective": "text",
        "train": {
            "steps": 1, "tokens_per_step": options.tokens, "tokens_per_batch": options.tokens, "precision": "bf16",
            "memory_limit": options.limit, "evaluate_every": 1,
        },
    }  # fmt: skip
    run = tunesmith.train(recipe, directory / "run")
    import torch

    events = list(run.events())
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "tokens": next(event["tokens"] for event in events if event["event"] == "step"),
        "within": {k: v for k, v in next(e for e in events if e["event"] == "memory").items() if k != "time"},
        "peak_bytes": peak_memory(torch.device("cpu")),
        "seconds": [event["seconds"] for event in events if event["event"] == "step"],
        "losses": [event["loss"] for event in events if event["event"] == "step"],
    }
    print(json.dumps(result, indent=1))
    (HERE / "results" / "long_rows.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
