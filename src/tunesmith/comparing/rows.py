"""The rows of a comparison in three parts that share no near-duplicates: to learn from, to choose on, to decide on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.data import Data
from tunesmith.data.example import Example
from tunesmith.data.examples import held_out_examples, training_examples
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task, spread, task_of
from tunesmith.prompting.rows import apart_from
from tunesmith.run import atomic_write

FEWEST = 10
"""Held-out rows. With fewer, no interval says anything."""

DEVELOPMENT_SHARE = 0.2
"""The most of the training rows that are set aside for choices."""


@dataclass(frozen=True)
class Parts:
    """The three parts.

    Attributes:
        train: fine-tuning and examples in prompts come from these.
        development: prompts and numbers of examples are chosen on these.
        held_out: the ways are compared on these.
        removed: how many rows were left out as near-duplicates, by what they are near-duplicates of.
        unused: held-out rows beyond the number asked for.
    """

    train: Sequence[Example]
    development: Sequence[Example]
    held_out: Sequence[Example]
    removed: dict[str, int]
    unused: int = 0

    @property
    def tasks(self) -> list[Task]:
        """The held-out rows as questions with expected answers."""
        return [task_of(example) for example in self.held_out]

    @property
    def development_tasks(self) -> list[Task]:
        """The development rows as questions with expected answers."""
        return [task_of(example) for example in self.development]


def parts_of(data: Data, rows: int, development: int) -> Parts:
    """Read the rows and part them.

    A training row that is a near-duplicate of a held-out row is left out, so that no way has seen a question that it is
    measured on; and so is one of a development row. Near-duplicates of their questions count.

    Args:
        data: with `train` and `held_out`.
        rows: the most held-out rows, evenly spaced.
        development: the most development rows.

    Returns:
        The parts.

    Raises:
        UserError: the rows cannot be read, are no chats, or are too few.
    """
    learned, held_out = _chats(training_examples(data, ())), _chats(held_out_examples(data, ()))
    used = [held_out[index] for index in spread(len(held_out), rows)] if held_out else []
    if len(used) < FEWEST:
        raise UserError(
            f"data has {len(used):,} held-out rows, and a comparison needs at least {FEWEST}. "
            "Give more rows, or raise data.held_out."
        )
    apart = apart_from(learned, held_out)
    count = min(development, int(len(apart) * DEVELOPMENT_SHARE))
    chosen = set(spread(len(apart), count)) if count else set()
    set_aside = [example for index, example in enumerate(apart) if index in chosen]
    rest = [example for index, example in enumerate(apart) if index not in chosen]
    train = apart_from(rest, set_aside)
    if not train:
        raise UserError("data.train has no row that is not a near-duplicate of a held-out row. Give other rows.")
    removed = {"held_out": len(learned) - len(apart), "development": len(rest) - len(train)}
    return Parts(train, set_aside, used, removed, len(held_out) - len(used))


def _chats(examples: Sequence[Example]) -> list[Example]:
    """The examples.

    Raises:
        UserError: one of them is no question with an answer.
    """
    for example in examples:
        if example.messages is None:
            raise UserError(
                f"{example.source} is not a question with an answer, which a comparison needs. "
                "Name the columns: data: {columns: {question: …, answer: …}}."
            )
    return list(examples)


def question_of(example: Example) -> str:
    """The last question of a chat.

    Args:
        example: a chat.

    Returns:
        The text of the turn before the last answer.
    """
    return str(task_of(example).chat[-1]["content"])


def write_rows(
    file: Path, examples: Sequence[Example], changed: Callable[[Example], Sequence[Any]] | None = None
) -> Path:
    """Write examples as rows of chats, to train on.

    Args:
        file: in JSONL.
        examples: chats.
        changed: the messages of an example, if they are not its own.

    Returns:
        The file.
    """
    with atomic_write(file) as out:
        for example in examples:
            messages = example.messages if changed is None else changed(example)
            row = {"messages": messages} | ({"tools": example.tools} if example.tools else {})
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file
