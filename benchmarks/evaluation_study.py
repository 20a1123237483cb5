"""What tuning gains and what it costs, on four tasks, at three learning rates and with replay: SmolLM2 and MiniLM.

    python benchmarks/evaluation_study.py [--tasks demo commongen legal banking77]

Three tasks train LoRA on SmolLM2-135M-Instruct: tool definitions of Python functions (the demo's), sentences with given
words (CommonGen, Lin et al. 2020), and terms of service in plain English (Manor & Li 2019). Banking77 trains MiniLM
as a few-shot classifier. Each run is evaluated beside its base: the task on held-out rows, and the suites forgetting,
bias, topic and memorization. General text is WikiText-2: its validation part is replayed, its test part measured.
One seed: intervals are over rows, and two runs of the same recipe may differ by more.

Each trial is a line of results/evaluation_study.jsonl; finished trials are not repeated. After each, the tables and the
plot are written again. A task whose data is not in TUNESMITH_DATA is left out, and said to be.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from evaluation_study_report import Trial, plot, table
from few_quality import drawn, encoder
from stored_result import absent, described_machine, run_trials, stored_trials
from study_rows import banking77, commongen, legal, write_rows
from train_speed_report import machine

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "evaluation_study.jsonl"
WORK = Path(tempfile.gettempdir()) / "evaluation_study"
BASE = "smollm2-135m-instruct"
METHOD = {"kind": "lora", "rank": 16, "alpha": 32, "last": 12}
"""The demo's: the last 12 of 30 blocks."""
KEPT = ("loss", "accuracy", "calibration_error", "rouge_l", "coverage", "fields", "exactly_right")
"""Figures of a task that a trial keeps, beside those of the suites."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed; a trial with other sizes is another trial.

    Attributes:
        steps: of training.
        tokens_per_step: of a text task.
        trained: rows of a text task.
        held_out: rows of a text task whose loss is measured.
        answered: of these, rows that are answered.
        suite_rows: prompts, pieces of text, pairs and rows of each suite.
        suite_tokens: the most tokens of an answer in a suite.
        per_class: rows of each class of Banking77 that are trained on.
        tested: rows of Banking77 that are classified.
    """

    steps: int = 32
    tokens_per_step: int = 192
    trained: int = 32
    held_out: int = 32
    answered: int = 12
    suite_rows: int = 24
    suite_tokens: int = 24
    per_class: int = 8
    tested: int = 500


SIZES = Sizes()


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        write: writes train.jsonl and held_out.jsonl into a directory.
        data: the folders of DATA that it reads.
        rates: three learning rates.
        answer: the most tokens of an answer.
        metrics: of answers, beside the usual ones.
    """

    write: Callable[[Path], None]
    data: tuple[str, ...]
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    answer: int = 48
    metrics: tuple[str, ...] = ()


def write_demo(directory: Path) -> None:
    from tunesmith.demo import tools

    tools.write_rows(directory, most_held_out=SIZES.held_out, most_train=SIZES.trained)


def write_commongen(directory: Path) -> None:
    """Twice as many rows, since they are short."""
    system = "You write a sentence with the words that you are given. You decline everything else."
    rows = [_chat(system, *pair) for pair in commongen(DATA, 2 * SIZES.trained + SIZES.held_out)]
    write_rows(directory / "held_out.jsonl", rows[: SIZES.held_out])
    write_rows(directory / "train.jsonl", rows[SIZES.held_out :])


def write_legal(directory: Path) -> None:
    system = "You put terms of service into plain English. You decline everything else."
    train, held_out = legal(DATA)
    write_rows(directory / "held_out.jsonl", [_chat(system, *pair) for pair in held_out[: SIZES.held_out]])
    write_rows(directory / "train.jsonl", [_chat(system, *pair) for pair in train[: SIZES.trained]])


def write_banking77(directory: Path) -> None:
    train, test = banking77(DATA, "train"), banking77(DATA, "test")
    write_rows(directory / "train.jsonl", drawn(train, SIZES.per_class, 0))
    write_rows(directory / "held_out.jsonl", random.Random(0).sample(test, len(test))[: SIZES.tested])


def _chat(system: str, question: str, answer: str) -> dict[str, Any]:
    turns = (("system", system), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BESIDE = ("wikitext2", "crows_pairs")
"""What the suites and replay read."""

TASKS = {
    "demo": Task(write_demo, BESIDE, answer=128),
    "commongen": Task(write_commongen, ("commongen", *BESIDE), answer=32, metrics=("coverage",)),
    "legal": Task(write_legal, ("legal_summarization", *BESIDE), answer=64),
    "banking77": Task(write_banking77, ("banking77",), rates=(3e-5, 1e-4, 3e-4)),
}


def trials_of(name: str) -> list[tuple[float, bool]]:
    """Learning rate, and whether there is replay: at the largest rate, where there is most to keep."""
    rates = TASKS[name].rates
    return [(rate, False) for rate in rates] + ([(rates[-1], True)] if name != "banking77" else [])


def recipe_of(name: str, rate: float, replay: bool, rows: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"train": str(rows / "train.jsonl"), "held_out": [str(rows / "held_out.jsonl")]}
    train = {"steps": SIZES.steps, "learning_rate": rate, "evaluate_every": 100_000, "evaluate_rows": 4}
    if name == "banking77":
        return {
            "base": encoder(),
            "data": {**data, "max_length": 64},
            "method": "full",
            "objective": "few_shot",
            "train": train,
        }
    if replay:
        data |= {"replay": [str(DATA / "wikitext2" / "valid.txt")], "replay_share": 0.25}
    return {
        "base": BASE,
        "data": {**data, "max_length": 512, "overflow": "drop"},
        "method": METHOD,
        "train": {**train, "tokens_per_step": SIZES.tokens_per_step},
    }


def trial(task: str, rate: float, replay: bool) -> Trial:
    """Train and evaluate once.

    Args:
        task: its name.
        rate: peak learning rate.
        replay: whether general text is replayed.

    Returns:
        What identifies the trial, and the base's figures, the tuned model's, and their differences.
    """
    import tunesmith

    with tempfile.TemporaryDirectory(dir=WORK) as directory:
        run = tunesmith.train(recipe_of(task, rate, replay, rows_of(task)), Path(directory) / "run")
        found = evaluated(task, str(run.directory))
    return {
        "task": task, "rate": rate, "replay": replay, "setting": asdict(SIZES), "base": BASE,
        "date": str(date.today()), "machine": described_machine(machine()), "figures": found,
    }  # fmt: skip


@cache
def rows_of(task: str) -> Path:
    """The directory of a task's rows, which are written once."""
    rows = WORK / task
    rows.mkdir(parents=True, exist_ok=True)
    TASKS[task].write(rows)
    return rows


def evaluated(name: str, run: str) -> dict[str, Any]:
    """The figures of the task and of the suites, by name: of the base, of the run, and their difference."""
    import tunesmith
    from tunesmith.demo.tools import TOOL_METRICS
    from tunesmith.metrics import METRICS, metric_named

    task = TASKS[name]
    if name == "banking77":
        return _kept(tunesmith.evaluate(run))
    metrics = TOOL_METRICS if name == "demo" else {**METRICS, **{each: metric_named(each) for each in task.metrics}}
    found = _kept(tunesmith.evaluate(run, SIZES.answered, task.answer, metrics=metrics))
    options = {
        "forgetting": {"general": str(DATA / "wikitext2" / "test.txt")},
        "bias": {"crows_pairs": str(DATA / "crows_pairs" / "crows_pairs_anonymized.csv")},
    }
    suites = ("forgetting", "bias", "topic", "memorization")
    beside = tunesmith.evaluate(
        run, SIZES.suite_rows, SIZES.suite_tokens, metrics={}, suites=suites, suite_options=options
    )
    return found | {figure: each for figure, each in _kept(beside).items() if "." in figure}


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    """By figure: its unit, value, interval and rows of both models, and the paired difference with its verdict."""
    base, tuned = (result["models"][column] for column in ("base", "tuned"))
    return {
        figure: {
            "unit": result["figures"][figure]["unit"],
            "base": base.get(figure),
            "tuned": own,
            "difference": result["differences"]["tuned"].get(figure),
        }
        for figure, own in tuned.items()
        if figure in KEPT or ("." in figure and not figure.startswith("bias.stereotype_"))
    }


def done() -> list[Trial]:
    """The finished trials."""
    return stored_trials(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    for name in parser.parse_args().tasks:
        if missing := absent(DATA / folder for folder in TASKS[name].data):
            print(f"{name} is left out: {missing}", flush=True)
            continue
        wanted = [{"task": name, "rate": rate, "replay": replay} for rate, replay in trials_of(name)]
        run_trials(RESULTS, {"setting": asdict(SIZES), "base": BASE}, wanted, trial, lambda: write_report(done()))


def write_report(trials: Sequence[Trial]) -> None:
    """The tables and the plot, beside the trials."""
    RESULTS.with_suffix(".md").write_text(table(trials), encoding="utf-8")
    plot(trials, RESULTS.with_suffix(".svg"))


if __name__ == "__main__":
    main()
