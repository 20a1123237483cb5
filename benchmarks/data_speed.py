"""Tokenizing and packing against the tokenizers library's own batch encoding, and the time from command to first step.

    python benchmarks/data_speed.py --rows ../shared/data/gsm8k/train.jsonl

Makes 25,000 and 100,000 rows from the given ones (each with its own number, so that none is a copy), and measures on
all cores, each in a separate process: `encode_batch` on the rendered texts, with all texts and all results in memory,
as the library does it; `tunesmith.data.prepare` on the file, from its bytes to packed batches; and
`tunesmith train` on the 100,000 from its cache, from the command to the first step. Writes
results/data_speed.{json,md}.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_speed_report import machine

HERE = Path(__file__).resolve().parent
COUNTS = (25_000, 100_000)


def make_rows(source: Path, count: int, directory: Path) -> Path:
    file = directory / f"rows-{count}.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            row = dict(rows[number % len(rows)])
            row["question"] = f"{number}. {row['question']}"
            out.write(json.dumps(row) + "\n")
    return file


def recipe_of(file: Path, cache: bool) -> dict[str, Any]:
    return {
        "base": "embedded",
        "data": {"train": str(file), "held_out": 0.0, "max_length": 1024, "cache": cache},
        "method": "lora",
        "train": {"steps": 3, "evaluate_every": 3},
    }


def encode(file: Path) -> dict[str, Any]:
    """The library alone, on rendered texts."""
    from tunesmith.config.recipe import Recipe
    from tunesmith.models.load import load_tokenizer

    tokenizer = load_tokenizer(Recipe.load(recipe_of(file, cache=False)).base)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}],
            tokenize=False,
        )
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    ]
    started = time.perf_counter()
    result = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": sum(len(each.ids) for each in result), **memory()}


def prepared(file: Path) -> dict[str, Any]:
    """Ours, from the file's bytes to packed batches."""
    from tunesmith.config.recipe import Recipe
    from tunesmith.data.pack import Batches
    from tunesmith.data.prepare import prepare
    from tunesmith.models.load import load_tokenizer

    recipe = Recipe.load(recipe_of(file, cache=False))
    tokenizer = load_tokenizer(recipe.base)
    before = memory()["peak_rss_bytes"]
    started = time.perf_counter()
    table = prepare(recipe, tokenizer).train
    tokenized = time.perf_counter() - started
    batches = Batches(table, tokens_per_step=2048, tokens_per_batch=2048, pack=True, shuffle=True, seed=0)
    batch_count = len(batches.epoch(0))
    seconds = time.perf_counter() - started
    grown = memory()["peak_rss_bytes"] - before
    return {
        "seconds": seconds, "tokenizing_seconds": tokenized, "tokens": len(table.ids), "batches": batch_count,
        "grown_bytes": grown, **memory(),
    }  # fmt: skip


def first_step(file: Path) -> dict[str, Any]:
    """Seconds from the command to the first step, by the run's own events; with a cache."""
    directory = Path(tempfile.mkdtemp())
    recipe = directory / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(file, cache=True)))
    call = "import sys; from tunesmith.cli import main; sys.argv[0] = 'tunesmith'; sys.exit(main())"
    seconds = []
    for number in range(4):
        started = time.time()
        command = [sys.executable, "-c", call, "train", str(recipe), "--run", str(directory / f"run-{number}")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = directory / f"run-{number}" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step"' in metrics.read_text()):
            time.sleep(0.02)
        seconds.append(time.time() - started)
        process.wait()
    return {"seconds": statistics.median(seconds[1:]), "first": seconds[0], "all": seconds}


def memory() -> dict[str, int]:
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| rows | tokens | Tunesmith | encode_batch | Tunesmith adds | encode_batch holds |",
        "|---|---|---|---|---|---|",
    ]
    for count, parts in result["rows"].items():
        ours, theirs = parts["prepare"], parts["encode_batch"]
        lines.append(
            f"| {int(count):,} | {ours['tokens'] / 1e6:.1f} M | {ours['seconds']:.1f} s | {theirs['seconds']:.1f} s "
            f"| {ours['grown_bytes'] / 1e6:.0f} MB | {theirs['peak_rss_bytes'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines) + "\n"


PARTS = {"encode_batch": encode, "prepare": prepared, "first step": first_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.rows)))
        return
    directory = Path(tempfile.mkdtemp())
    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": {}}
    for count in COUNTS:
        file = make_rows(options.rows, count, directory)
        for part in PARTS:
            if part == "first step" and count != COUNTS[-1]:
                continue
            command = [sys.executable, __file__, "--rows", str(file), "--part", part]
            rounds = []
            for _ in range(1 if part == "first step" else options.repeats):
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rounds.append(json.loads(done.stdout.splitlines()[-1]))
            middle = sorted(rounds, key=lambda each: each["seconds"])[len(rounds) // 2]
            result["rows"].setdefault(str(count), {})[part] = middle
            print(count, part, {name: value for name, value in middle.items() if name != "all"}, flush=True)
    (HERE / "results" / "data_speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "results" / "data_speed.md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
