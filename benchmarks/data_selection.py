"""What a selection of rows costs or gains against as many random ones.

    python benchmarks/data_selection.py [--seeds 5]

From a pool of rows (data_quality.py's: messages that MiniLM learns to classify, and word problems that the embedded
base learns to write), `data select` chooses a fourth by diversity (by words, and by MiniLM's vectors), by quality, by
difficulty (of the embedded base, for the word problems), and at random. All train for the same steps; the loss is on
the same held-out rows. Each trial is a line of results/data_selection.jsonl; finished ones are not repeated. One core.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from data_quality import DATA, ROWS, SIZES, TASKS, recipe_of
from data_quality_report import TITLES, half_of_interval
from few_quality import encoder
from stored_result import described_machine, finished_trials, run_seeds, run_trials
from study_rows import write_rows
from train_speed_report import machine

Trial = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "data_selection.jsonl"
SHARE = 0.25
"""Of the pool that is selected."""

WAYS = ("random", "diversity", "diversity, vectors", "quality", "difficulty")


def trials_of() -> Iterator[tuple[str, str]]:
    """Task and way of every trial of a seed; a text with a class has no answer whose loss shows difficulty."""
    for task in TASKS:
        yield from ((task, way) for way in WAYS if way != "difficulty" or task == "problems")


def trial(task: str, way: str, seed: int) -> Trial:
    """Select, and train once.

    Args:
        task: of data_quality.py.
        way: one of WAYS.
        seed: of the pool, of the selection and of training.

    Returns:
        What identifies the trial, and the held-out figures.
    """
    import torch

    import tunesmith

    torch.set_num_threads(1)
    pool, held_out = ROWS[task](seed)
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        write_rows(here / "pool.jsonl", pool)
        write_rows(here / "held_out.jsonl", held_out)
        by: Any = way.partition(",")[0]
        model = encoder() if way.endswith("vectors") else None
        count = round(SHARE * len(pool))
        chosen = tunesmith.data_select(here / "pool.jsonl", count, here / "rows.jsonl", by=by, model=model, seed=seed)
        recipe = recipe_of(task, chosen.file, here / "held_out.jsonl", seed)
        if task == "intents":  # a selection may leave a class out
            recipe["objective"] = {"kind": "classification", "labels": sorted({row["label"] for row in pool})}
        run = tunesmith.train(recipe, here / "run")
        figures = tunesmith.evaluate(run.directory, 0)["models"]["tuned"]
    return {
        "task": task, "way": way, "seed": seed, "setting": asdict(SIZES), "share": SHARE, "rows": count,
        "loss": figures["loss"]["value"], "accuracy": figures["accuracy"]["value"] if "accuracy" in figures else None,
        "date": str(date.today()), "machine": described_machine(machine()),
    }  # fmt: skip


def current() -> dict[str, Any]:
    """The settings that a trial has stored."""
    return {"setting": asdict(SIZES), "share": SHARE}


def done() -> list[Trial]:
    """The finished trials with these sizes."""
    return finished_trials(RESULTS, current())


def table(trials: list[Trial]) -> str:
    """Markdown: the difference of each way from random rows, by seed."""
    lines = ["| task | rows | way | loss | difference from random |", "|---|---:|---|---:|---:|"]
    for task, way in trials_of():
        found, others = (
            {each["seed"]: each for each in trials if (each["task"], each["way"]) == (task, name)}
            for name in (way, "random")
        )
        seeds = sorted(found.keys() & others.keys())
        if not seeds:
            continue
        loss = sum(found[seed]["loss"] for seed in seeds) / len(seeds)
        differences = [found[seed]["loss"] - others[seed]["loss"] for seed in seeds]
        half = half_of_interval(differences)
        shown = f"{sum(differences) / len(seeds):+.3f}" + ("" if half is None else f" ± {half:.3f}")
        cells = (TITLES[task], f"{found[seeds[0]]['rows']:,}", way, f"{loss:.3f}", "" if way == "random" else shown)
        lines.append(f"| {' | '.join(cells)} |")
    number = len({each["seed"] for each in trials})
    about = (
        f"A fourth of the pool; held-out loss in nats after the same steps; means over {number} seeds, with the 95 % "
        "interval (Student's t) of the differences by seed. Below zero is better than random."
    )
    machines = " and ".join(sorted({each["machine"] for each in trials}))
    return f"{about} {machines}, {max((each['date'] for each in trials), default='')}.\n\n" + "\n".join(lines) + "\n"


def trials(seed: int) -> None:
    """Run those of a seed that are not finished."""
    wanted = [{"task": task, "way": way, "seed": seed} for task, way in trials_of()]
    run_trials(RESULTS, current(), wanted, trial, write_report)


def write_report() -> None:
    """The table, beside the trials."""
    RESULTS.with_suffix(".md").write_text(table(done()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    run_seeds(parser.parse_args().seeds, [DATA / name for name in ("banking77", "gsm8k")], trials)


if __name__ == "__main__":
    main()
