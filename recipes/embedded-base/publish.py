"""Assembles the embedded base: weights, tokenizer and a model card with metrics that this script measures.

    python publish.py --build build --out ../../src/tunesmith/models/embedded

Reads BUILD/corpus, BUILD/pretrained and BUILD/instructed, as `make embedded-base` writes them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from packages import PACKAGES

from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.inference.held_out import RowLosses, held_out_losses
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.run import Run

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
LARGEST = 16 * 2**20  # bytes, of the directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="directory with corpus, pretrained and instructed")
    parser.add_argument("--out", type=Path, required=True, help="output directory of the model")
    arguments = parser.parse_args()
    build, out = arguments.build, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = build / "instructed" / "model"
    for name in (*FILES, TEMPLATE):
        shutil.copyfile(model / name, out / name)
    (out / "README.md").write_text(card(build), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.iterdir())
    if size > LARGEST:
        raise SystemExit(f"{out} has {size:,} bytes, more than {LARGEST:,}.")
    print(f"{out}: {size:,} bytes")


def card(build: Path) -> str:
    pretrained, instructed = Run.open(build / "pretrained"), Run.open(build / "instructed")
    texts, documents = _held_out_texts(Recipe.load(pretrained.directory / "recipe.yaml"))
    before, after = (_losses(run, texts, documents) for run in (pretrained, instructed))
    instruct = Recipe.load(instructed.directory / "recipe.yaml")
    answers = prepare(instruct, load_tokenizer(instruct.base)).held_out
    untaught, taught = (_losses(run, instruct, answers) for run in (pretrained, instructed))
    config = json.loads((pretrained.directory / "model" / "config.json").read_text(encoding="utf-8"))
    text_bytes = sum(len(json.loads(line)["text"].encode()) for line in _lines(texts.data.train[0]))
    return (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            parameters=_event(pretrained, "start")["parameters"],
            pretraining=_effort(pretrained),
            instruction=_effort(instructed),
            documents=len(_lines(texts.data.train[0])),
            held_out_tokens=int(before.counts.sum()),
            perplexity=math.exp(before.loss),
            interval=", ".join(f"{math.exp(bound):.1f}" for bound in before.interval()),
            bits=before.sums.sum() / math.log(2) / text_bytes,
            later_perplexity=math.exp(after.loss),
            untaught=math.exp(untaught.loss),
            taught=math.exp(taught.loss),
            answer_rows=len(taught.sums),
            sources=_sources(build),
        )
    )


def _effort(run: Run) -> str:
    steps = [event for event in run.events() if event["event"] == "step"]
    tokens, seconds = (sum(event[name] for event in steps) for name in ("tokens", "seconds"))
    return f"{len(steps):,} steps, {tokens / 1e6:.1f} million tokens, {seconds / 60:.0f} minutes on two cores in bf16"


def _event(run: Run, kind: str) -> dict[str, Any]:
    return next(event for event in run.events() if event["event"] == kind)


def _held_out_texts(recipe: Recipe) -> tuple[Recipe, TokenTable]:
    """The pretraining recipe with its held-out documents as the data, and their tokens."""
    files = recipe.data.held_out
    assert isinstance(files, list)
    texts = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": files, "held_out": 0.0})})
    return texts, prepare(texts, load_tokenizer(texts.base)).train


def _losses(run: Run, recipe: Recipe, table: TokenTable) -> RowLosses:
    """The loss of the run's model on each row of the table, with the recipe's objective."""
    model = load_model(Base(path=str(run.directory / "model")), torch.bfloat16)
    use_document_attention(model)
    return held_out_losses(model, recipe.objective.build(), table, range(len(table)), 2048)


def _lines(path: str | Path) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def _sources(build: Path) -> str:
    """A table of the packages that the text comes from."""
    by_package: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in _lines(build / "corpus" / "train.jsonl"):
        row = json.loads(line)
        counts = by_package[row["source"].split(":", 1)[0]]
        counts[0] += 1
        counts[1] += len(row["text"].encode())
    known = {package.name: package for package in PACKAGES}
    lines = ["| package | what | license | documents | MB |", "|---|---|---|---:|---:|"]
    for name, (documents, size) in sorted(by_package.items(), key=lambda item: -item[1][1]):
        package = known[name]
        lines.append(f"| {name} | {package.what} | {package.license} | {documents:,} | {size / 1e6:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
