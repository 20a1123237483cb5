"""Does cleaning help? Models trained on sets with 20 % planted faults, on what `data clean` leaves of them, and on sets
without.

    python benchmarks/data_quality.py [--seeds 5]

Two tasks: messages of a bank's customers in 20 of the 77 intents of Banking77, which MiniLM learns to classify, with
wrong labels or duplicates; and short word problems of GSM8K, which the embedded base learns to write from their
solutions, with duplicates, cut answers or answers in another language. A duplicate takes the place of a row, so a dirty
set has fewer different rows. Cleaning uses its defaults. All arms train for the same steps, with the same seed; the
loss is on the same clean held-out rows.

Each trial is a line of results/data_quality.jsonl; finished ones are not repeated. After each, the table and the plot
are written again. One core.
"""

import argparse
import json
import os
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from data_quality_report import Trial, plot, table
from few_quality import encoder
from stored_result import described_machine, finished_trials, run_seeds, run_trials
from study_rows import banking77, write_rows
from train_speed_report import machine
from training_faults import planted

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "data_quality.jsonl"

SHARE = 0.2
"""Of the rows that are made faulty."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed; a trial with other sizes is another trial.

    Attributes:
        classes: of Banking77.
        per_class: rows of each class that are trained on.
        classified: held-out messages.
        problems: word problems that are trained on.
        held_out: held-out word problems.
        steps: of training, by task.
        tokens: of a step, by task.
        rates: of learning, by task.
    """

    classes: int = 20
    per_class: int = 30
    classified: int = 300
    problems: int = 400
    held_out: int = 100
    steps: tuple[int, int] = (50, 40)
    tokens: tuple[int, int] = (512, 1024)
    rates: tuple[float, float] = (1e-4, 1e-3)


SIZES = Sizes()

TASKS = {"intents": ("wrong labels", "duplicates"), "problems": ("duplicates", "cut answers", "wrong language")}
"""The faults of each task."""

DIRTY, CLEANED, CLEAN = "dirty", "cleaned", "clean"
"""Arms."""

LONGEST = 240
"""Characters of a prompt and of an answer."""


def intents(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the same classes for every seed, drawn by it; and the held-out rows, the same for all."""
    train, test = banking77(DATA, "train"), banking77(DATA, "test")
    classes = set(random.Random(0).sample(sorted({row["label"] for row in train}), SIZES.classes))
    draw, rows = random.Random(seed), list[dict[str, str]]()
    for label in sorted(classes):
        members = [row for row in train if row["label"] == label]
        rows += draw.sample(members, min(SIZES.per_class, len(members)))
    draw.shuffle(rows)
    held_out = [row for row in test if row["label"] in classes]
    return rows, random.Random(0).sample(held_out, min(SIZES.classified, len(held_out)))


def problems(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Solutions as prompts, and their word problems as answers: prose, which can be cut and has a language."""
    both = []
    for part in ("train", "test"):
        lines = (DATA / "gsm8k" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [_from_solution(json.loads(line)) for line in lines]
        both.append([row for row in rows if max(len(row["question"]), len(row["answer"])) <= LONGEST])
    train, test = both
    chosen = random.Random(seed).sample(train, min(SIZES.problems, len(train)))
    return chosen, random.Random(0).sample(test, min(SIZES.held_out, len(test)))


def _from_solution(row: dict[str, str]) -> dict[str, str]:
    """A row without GSM8K's marks of calculations."""
    steps, _, result = re.sub(r"<<[^>]*>>", "", row["answer"]).partition("\n#### ")
    return {
        "question": f"Write the word problem of this solution:\n{steps}\nThe answer is {result}.",
        "answer": row["question"],
    }


ROWS = {"intents": intents, "problems": problems}


def arms() -> Iterator[tuple[str, str, str]]:
    """Task, fault and arm of every trial of a seed; a clean set has no fault."""
    for task, faults in TASKS.items():
        yield task, "", CLEAN
        for fault in faults:
            yield task, fault, DIRTY
            yield task, fault, CLEANED


def recipe_of(task: str, rows: Path, held_out: Path, seed: int) -> dict[str, Any]:
    at = list(TASKS).index(task)
    recipe: dict[str, Any] = {
        "base": "embedded" if task == "problems" else encoder(),
        "data": {"train": str(rows), "held_out": [str(held_out)], "max_length": 256, "cache": False},
        "method": "full",
        "train": {
            "steps": SIZES.steps[at], "learning_rate": SIZES.rates[at], "tokens_per_step": SIZES.tokens[at],
            "seed": seed, "evaluate_every": 100_000,
        },
    }  # fmt: skip
    if task == "intents":
        recipe["objective"] = "classification"
    return recipe


def trial(task: str, fault: str, arm: str, seed: int) -> Trial:
    """Train once.

    Args:
        task: a name in TASKS.
        fault: one of its faults; empty for the clean arm.
        arm: clean, dirty or cleaned.
        seed: of the rows, of the faults and of training.

    Returns:
        What identifies the trial, the held-out figures, and what cleaning dropped.
    """
    import torch

    import tunesmith

    torch.set_num_threads(1)
    good, held_out = ROWS[task](seed)
    rows, faulty = planted(good, fault, SHARE, seed) if fault else (good, [])
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        source, test, cleaned = here / "rows.jsonl", here / "held_out.jsonl", here / "cleaned.jsonl"
        write_rows(source, rows)
        write_rows(test, held_out)
        dropped: set[int] = set()
        if arm == CLEANED:
            ledger = tunesmith.data_clean(source, cleaned).ledger.read_text(encoding="utf-8").splitlines()
            entries = [each for each in map(json.loads, ledger) if "fate" in each]
            dropped = {each["row"] - 1 for each in entries if each["fate"] == "dropped"}
        run = tunesmith.train(recipe_of(task, cleaned if arm == CLEANED else source, test, seed), here / "run")
        figures = tunesmith.evaluate(run.directory, 0)["models"]["tuned"]
    return {
        "task": task, "fault": fault, "arm": arm, "seed": seed, "setting": asdict(SIZES), "share": SHARE,
        "rows": len(rows) - len(dropped), "planted": len(faulty), **outcome(rows, dropped, faulty),
        "loss": figures["loss"]["value"],
        "accuracy": figures["accuracy"]["value"] if "accuracy" in figures else None,
        "date": str(date.today()), "machine": described_machine(machine()),
    }  # fmt: skip


def outcome(rows: list[dict[str, str]], dropped: set[int], faulty: list[int]) -> dict[str, int]:
    """Faults that were found, and good rows that were dropped. Of rows that are the same, it does not matter which one
    is dropped, as long as one is kept."""
    kept = {json.dumps(row) for number, row in enumerate(rows) if number not in dropped}
    copies = {number for number in dropped if json.dumps(rows[number]) in kept}
    found = copies | (dropped & set(faulty))
    return {"found": len(found), "wrongly_dropped": len(dropped - found)}


def current() -> dict[str, Any]:
    """The settings that a trial has stored."""
    return {"setting": asdict(SIZES), "share": SHARE}


def done() -> list[Trial]:
    """The finished trials with these sizes."""
    return finished_trials(RESULTS, current())


def trials(seed: int) -> None:
    """Run those of a seed that are not finished."""
    wanted = [{"task": task, "fault": fault, "arm": arm, "seed": seed} for task, fault, arm in arms()]
    run_trials(RESULTS, current(), wanted, trial, lambda: write_report(done()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    run_seeds(parser.parse_args().seeds, [DATA / name for name in ("banking77", "gsm8k")], trials)


def write_report(trials: list[Trial]) -> None:
    """The table and the plot, beside the trials."""
    RESULTS.with_suffix(".md").write_text(table(trials), encoding="utf-8")
    plot(trials, RESULTS.with_suffix(".svg"))


if __name__ == "__main__":
    main()
