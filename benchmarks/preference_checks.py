"""Tasks whose answers can be checked: GRPO beside the same number of samples as best-of-n, once and phase by phase.

`preference_quality.py` runs it. From the same weights, which a few examples gave, each way samples as many answers:
GRPO learns from all of them, expert iteration (`best_of_n`, phase by phase) from the right ones, and best-of-n samples
all of them before it trains once on the right ones. Choosing the right one of several answers is measured apart.
"""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, str]

EXAMPLES, PROMPTS, HELD_OUT = 96, 512, 200
"""Rows with their answers for the first stage, rows for the other ways, and rows that are measured."""

GROUP, PHASE, UPDATES = 8, 16, 4
"""Answers to each prompt, prompts of a phase, and optimizer steps of a phase."""

WAYS: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "advantage": "group_rate"},
    "expert": {"kind": "best_of_n", "threshold": 1.0},
}
"""The ways that sample from their own weights, phase by phase."""

ANIMALS = (
    "tiger", "horse", "mouse", "zebra", "fox", "dog", "cat", "ant", "bee", "cow", "pig", "hen", "owl", "rat", "bat",
    "elk", "eagle", "wolf", "bear", "deer", "goat", "sheep", "frog", "snake", "shark", "whale", "lion", "duck", "goose",
    "rabbit", "monkey", "camel", "donkey", "parrot", "turtle", "spider",
)  # fmt: skip
THINGS = (
    "apple", "river", "stone", "cloud", "bread", "chair", "plant", "music", "ocean", "light", "house", "train", "paper",
    "glass", "table", "water", "field", "piano", "robot", "knife", "jelly", "igloo", "yacht", "kite", "lamp", "spoon",
    "shirt", "bridge", "clock", "window", "pencil", "bottle", "ladder", "hammer", "pillow", "candle",
)  # fmt: skip
WORDS = 6
"""Of a list, of which one to five are animals."""


def sum_of_two(draw: random.Random) -> Row:
    """A sum of two numbers below 60."""
    a, b = draw.randint(2, 59), draw.randint(2, 59)
    return {"question": f"What is {a} + {b}?", "answer": str(a + b)}


def animals_of_a_list(draw: random.Random) -> Row:
    """The animals among some words, in their order."""
    count = draw.randint(1, WORDS - 1)
    words = draw.sample(ANIMALS, count) + draw.sample(THINGS, WORDS - count)
    draw.shuffle(words)
    return {
        "question": f"Which of these are animals: {', '.join(words)}?",
        "answer": ", ".join(word for word in words if word in ANIMALS),
    }


@dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        row: draws a question with its answer.
        tokens: the most of an answer.
        phases: of the ways that sample.
        rate: their learning rate; None: the default.
    """

    row: Callable[[random.Random], Row]
    tokens: int
    phases: int
    rate: float | None


TASKS = {
    "sums": Task(sum_of_two, tokens=8, phases=24, rate=None),
    "animals": Task(animals_of_a_list, tokens=24, phases=16, rate=3e-4),  # the rate: tried on a seed that is not here
}


def rows_of(task: Task, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Held-out rows, examples and prompts, without a question twice."""
    draw, found = random.Random(seed), dict[str, Row]()
    while len(found) < HELD_OUT + EXAMPLES + PROMPTS:
        row = task.row(draw)
        found.setdefault(row["question"], row)
    rows = list(found.values())
    return rows[:HELD_OUT], rows[HELD_OUT : HELD_OUT + EXAMPLES], rows[HELD_OUT + EXAMPLES :]


def right(model: str, rows: Sequence[Row], tokens: int) -> float:
    """The share of rows that a model gets right, answering with the likeliest tokens."""
    import tunesmith

    answers = tunesmith.load(model).generate([row["question"] for row in rows], max_new_tokens=tokens)
    return mean(answer.text.strip() == row["answer"] for answer, row in zip(answers, rows, strict=True))


def samples_of(model: str, rows: Sequence[Row], tokens: int, seed: int) -> list[list[str]]:
    """`GROUP` answers to each row at temperature 1."""
    import tunesmith

    questions = [row["question"] for row in rows]
    answers = tunesmith.load(model).generate(questions, max_new_tokens=tokens, temperature=1.0, n=GROUP, seed=seed)
    texts = [answer.text.strip() for answer in answers]
    return [texts[number * GROUP : (number + 1) * GROUP] for number in range(len(rows))]


def checked_trial(base: str, task: Task, seed: int) -> dict[str, Any]:
    """A few examples, then as many samples for each way.

    Args:
        base: of the examples.
        task: what is asked.
        seed: of the rows and the runs.

    Returns:
        The share of held-out rows that each model gets right, by the way's name; `any_of_n`, the share of which one of
        `GROUP` samples is right; `kept`, the right samples of best-of-n.
    """
    import tunesmith

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        held_out, examples, prompts = rows_of(task, seed)

        def written(name: str, rows: Sequence[Row]) -> dict[str, Any]:
            (directory / name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
            return {"train": str(directory / name), "held_out": 0.0}

        def tuned(name: str, start: str | None, data: dict[str, Any], objective: dict[str, Any], **train: Any) -> str:
            recipe = {
                "base": {"path": base, "adapter": start and f"{start}/adapter"},
                "data": data,
                "objective": objective,
                "method": {"kind": "lora", "rank": 16, "alpha": 32},
                "train": {"seed": seed, "precision": "fp32", **train},
            }
            return str(tunesmith.train(recipe, directory / name).directory)

        first = tuned("first", None, written("examples.jsonl", examples), {"kind": "instruction"}, epochs=2.0,
                      tokens_per_step=1024)  # fmt: skip
        sampled = {
            "rewards": ["exact"], "group_size": GROUP, "prompts": PHASE, "max_new_tokens": task.tokens,
            "minibatches": UPDATES,
        }  # fmt: skip
        given = written("prompts.jsonl", prompts)
        phases = {"steps": task.phases * UPDATES, "learning_rate": task.rate}
        sampling = {name: tuned(name, first, given, {**way, **sampled}, **phases) for name, way in WAYS.items()}
        asked = (prompts * (1 + task.phases * PHASE // len(prompts)))[: task.phases * PHASE]
        kept = [
            row
            for row, answers in zip(asked, samples_of(first, asked, task.tokens, seed), strict=True)
            for answer in answers
            if answer == row["answer"]
        ]
        best = tuned("best", first, written("kept.jsonl", kept), {"kind": "instruction"}, epochs=4.0,
                     tokens_per_step=1024, learning_rate=task.rate)  # fmt: skip
        chosen = samples_of(first, held_out, task.tokens, seed)
        models = {"base": base, "examples": first, "best_of_n": best, **sampling}
        return {
            "kept": len(kept),
            "any_of_n": mean(row["answer"] in answers for row, answers in zip(held_out, chosen, strict=True)),
            **{name: right(model, held_out, task.tokens) for name, model in models.items()},
        }


def checked_table(
    title: str, trials: Sequence[dict[str, Any]], over: Callable[[list[float], int, str], str]
) -> list[str]:
    """Lines of Markdown.

    Args:
        title: the task's name.
        trials: of `checked_trial`, one for each seed.
        over: writes the mean of values, times a factor, with its interval and a unit.
    """
    names = {
        "base": "base", "examples": f"{EXAMPLES} examples", "best_of_n": "best-of-n, trained on once",
        "expert": "expert iteration", "grpo": "GRPO, `advantage: group_rate`",
        "any_of_n": f"{EXAMPLES} examples, one of {GROUP} samples is right",
    }  # fmt: skip
    lines = ["", f"| {title} right | | GRPO gets more right by |", "|---|---|---|"]
    for key, name in names.items():
        if not all(key in each for each in trials):
            continue
        more = [each["grpo"] - each[key] for each in trials]
        difference = over(more, 100, " points") if key in ("examples", "best_of_n", "expert") else ""
        lines.append(f"| {name} | {over([each[key] for each in trials], 100, '%')} | {difference} |")
    return lines
