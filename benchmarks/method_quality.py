"""How much each method learns and forgets: the embedded base on docstrings and on GSM8K, by method, rate and seed.

    python benchmarks/method_quality.py sweep      # one seed, rates around the default: where the defaults come from
    python benchmarks/method_quality.py defaults   # five seeds at the shipped defaults: what a user gets
    python benchmarks/quality_report.py            # the tables and plots in docs

Every trial is a line of results/method_quality.jsonl; finished trials are not repeated.
"""

import argparse
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from stored_result import stored_trials

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "method_quality.jsonl"
WORK = Path(tempfile.gettempdir()) / "method_quality"

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "layers, last 2": {"kind": "layers", "last": 2},
    "norms and biases": {"kind": "layers", "norms_and_biases": True},
    "lora": {"kind": "lora"},
    "lora, nf4": {"kind": "lora"},
    "dora": {"kind": "lora", "dora": True},
    "adapter, pfeiffer": {"kind": "adapter"},
    "adapter, houlsby": {"kind": "adapter", "placement": "houlsby"},
    "adapter, parallel": {"kind": "adapter", "placement": "parallel"},
    "ia3": {"kind": "ia3"},
    "prefix": {"kind": "prefix"},
    "prefix, projection": {"kind": "prefix", "projection": True},
    "prompt": {"kind": "prompt"},
    "ptuning": {"kind": "ptuning"},
}
FACTORS = (0.1, 0.3, 1.0, 3.0)
SEEDS = 5
STEPS = 40
TOKENS_PER_STEP = 2048
FORGETTING_ROWS = 24  # of 512 tokens of WikiText-2


def data_of(task: str) -> tuple[Path, Path]:
    """Training rows and test rows."""
    directory = WORK / task
    if task == "docstrings":
        if not (directory / "train.jsonl").exists():
            from tunesmith.demo.docstrings import write_pairs

            directory.mkdir(parents=True, exist_ok=True)
            write_pairs(directory)
        return directory / "train.jsonl", directory / "held_out.jsonl"
    return DATA / "gsm8k" / "train.jsonl", DATA / "gsm8k" / "test.jsonl"


def trial(task: str, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    """Train, and measure the held-out loss before and after, and WikiText-2's after."""
    import torch

    torch.set_num_threads(1)
    import tunesmith

    learn, test = data_of(task)
    directory = Path(tempfile.mkdtemp(dir=WORK))
    recipe = {
        "base": {"path": "embedded", "weights": "nf4" if name.endswith("nf4") else "auto"},
        "data": {"train": str(learn), "held_out": [str(test)], "max_length": 512, "overflow": "drop"},
        "method": METHODS[name],
        "train": {
            "steps": STEPS,
            "tokens_per_step": TOKENS_PER_STEP,
            "evaluate_every": STEPS,
            "evaluate_rows": 200,
            "learning_rate": rate,
            "seed": seed,
        },
    }
    run = tunesmith.train(recipe, directory / "run")
    events = list(run.events())
    start = next(event for event in events if event["event"] == "start")
    losses = [event["loss"] for event in events if event["event"] == "evaluation"]
    end = next(event for event in events if event["event"] == "end")
    result = {
        "task": task,
        "method": name,
        "rate": start["learning_rate"],
        "default_rate": rate is None,
        "seed": seed,
        "trained_parameters": start["trained_parameters"],
        "before": losses[0],
        "after": losses[-1],
        "general": general_loss(str(run.directory)),
        "seconds": end["seconds"],
    }
    shutil.rmtree(directory)
    return result


def general_loss(model: str, part: str = "valid.txt") -> float:
    """Nats per token on a part of WikiText-2, in pieces of 512 tokens."""
    import torch

    from tunesmith.config.recipe import Recipe
    from tunesmith.data.prepare import prepare
    from tunesmith.inference.held_out import held_out_losses
    from tunesmith.inference.model_reference import ModelReference
    from tunesmith.models.attention import use_document_attention
    from tunesmith.models.prompts import plain_model

    text = DATA / "wikitext2" / part
    recipe = Recipe.load(
        {"data": {"train": str(text), "held_out": 0.0, "max_length": 512, "format": "text"}, "objective": "text"}
    )
    reference = ModelReference.find(model)
    table = prepare(recipe, reference.tokenizer()).train
    loaded = reference.model(torch.float32, torch.device("cpu"))
    use_document_attention(plain_model(loaded))
    rows = range(min(FORGETTING_ROWS, len(table)))
    return held_out_losses(loaded, recipe.objective.build(), table, rows, 2048).loss


def default_rate(name: str) -> float:
    from tunesmith.config.registry import METHODS as REGISTRY

    method = REGISTRY.load(METHODS[name]["kind"]).model_validate(METHODS[name])
    return float(method.learning_rate(7_212_288))


def done() -> list[dict[str, Any]]:
    return stored_trials(RESULTS)


def run_all(requested: list[tuple[str, str, float | None, int]], workers: int) -> None:
    finished = {(each["task"], each["method"], f"{each['rate']:.1e}", each["seed"]) for each in done()}
    remaining = [
        each
        for each in requested
        if (each[0], each[1], f"{each[2] or default_rate(each[1]):.1e}", each[3]) not in finished
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    for task in {each[0] for each in remaining}:
        data_of(task)
    with ProcessPoolExecutor(workers) as pool:
        for number, result in enumerate(pool.map(trial, *zip(*remaining, strict=True)) if remaining else (), 1):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number}/{len(remaining)} {result['task']} {result['method']} {result['rate']:.1e} "
                f"seed {result['seed']}: {result['before']:.3f} → {result['after']:.3f}, "
                f"general {result['general']:.3f}, "
                f"{result['seconds']:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sweep", "defaults"))
    parser.add_argument("--tasks", nargs="+", default=["docstrings", "gsm8k"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "sweep":
        requested: list[tuple[str, str, float | None, int]] = [
            (task, name, float(f"{default_rate(name) * factor:.1e}"), 0)
            for task in arguments.tasks
            for name in arguments.methods
            for factor in FACTORS
        ]
    else:
        requested = [
            (task, name, None, seed) for task in arguments.tasks for name in arguments.methods for seed in range(SEEDS)
        ]
    run_all(requested, arguments.workers)
    untuned()


def untuned() -> None:
    """The losses of the base itself, to compare trials with."""
    rows = [row for row in done() if row["method"] == "full"]
    result = {
        task: {"before": next(row["before"] for row in rows if row["task"] == task)}
        for task in sorted({row["task"] for row in rows})
    }
    general = general_loss("embedded")
    text = json.dumps({task: {**values, "general": general} for task, values in result.items()}, indent=1)
    (HERE / "results" / "untuned.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
