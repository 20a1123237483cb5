"""What models are evaluated on: a run's held-out rows, or the rows of files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.config.data import Data
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example, Message
from tunesmith.data.examples import examples, held_out_examples, training_examples
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.prompts import ANSWER
from tunesmith.data.reasoning import reasoning_of, with_reasoning
from tunesmith.data.report import DataReport
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.inference.result_cache import digest_of
from tunesmith.objectives.instruction import Instruction
from tunesmith.objectives.text import Text

LONGEST = 2**17
"""Tokens of a row of a file; a longer one is left out, and counted."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question from a row, and the expected answer.

    Attributes:
        chat: the turns before the answer.
        expected: the answer, without its reasoning.
        source: the row.
        reasoning: what the row has of it before the answer.
    """

    chat: tuple[Message, ...]
    expected: str
    source: str
    reasoning: str = ""

    @property
    def answer(self) -> str:
        """The expected answer with its reasoning before it, as a model writes both."""
        return with_reasoning(self.expected, self.reasoning) if self.reasoning else self.expected


@dataclass(frozen=True)
class EvaluationRows:
    """Rows, and how they are read and rendered.

    Attributes:
        origin: where they come from, in words.
        recipe: whose held-out rows they are; its objective renders them.
        run: the run whose recipe it is; None if there is none.
        is_whole: whether they are all rows of the recipe's data, and not the held-out ones.
    """

    origin: str
    recipe: Recipe
    run: Path | None = None
    is_whole: bool = False

    @classmethod
    def of_run(cls, directory: Path) -> "EvaluationRows":
        """A run's held-out rows.

        Args:
            directory: of the run.

        Returns:
            The rows.

        Raises:
            UserError: its recipe cannot be read, or its rows are prompts without answers.
        """
        recipe = Recipe.load(directory / "recipe.yaml")
        if recipe.objective.rollouts is not None:
            raise UserError(
                f"{directory} learned from prompts, whose answers have rewards instead of a loss: its own evaluations "
                f"report them. Name rows that have answers: tunesmith evaluate {directory} --data FILE."
            )
        return cls(f"held-out rows of {directory.name}", recipe, directory)

    @classmethod
    def of_files(cls, paths: Sequence[str], run: Path | None = None) -> "EvaluationRows":
        """The rows of files.

        Args:
            paths: as `data.train` takes them.
            run: whose objective and columns are used; None: chats have a loss on their answers, raw text on all of it.

        Returns:
            The rows.

        Raises:
            UserError: they cannot be read.
        """
        objective: ObjectiveConfig
        recipe = None if run is None else Recipe.load(run / "recipe.yaml")
        origin = f"rows of {', '.join(Path(path).name for path in paths)}"
        if (
            recipe is not None and not recipe.objective.head.generates_text
        ):  # the training rows say what there is to predict
            data = recipe.data.model_copy(update={"held_out": list(paths), "folds": None, "fold": None})
            return cls(origin, recipe.model_copy(update={"data": data}), run)
        data = Data(
            train=list(paths),
            held_out=0.0,
            columns={} if recipe is None else recipe.data.columns,
            max_length=LONGEST,
            overflow="drop",
            skip_unusable=True,
        )
        if recipe is not None:
            objective = Instruction() if recipe.objective.rollouts is not None else recipe.objective
            return cls(origin, recipe.model_copy(update={"data": data, "objective": objective}), run, is_whole=True)
        first = next(examples(data, (), data.train, DataReport()), None)
        if first is None:
            raise UserError(f"There are no {origin}.")
        objective = Instruction() if first.messages is not None else Text()
        return cls(origin, Recipe(data=data, objective=objective), is_whole=True)

    @property
    def objective(self) -> ObjectiveConfig:
        """What renders the rows, and computes the loss."""
        return self.recipe.objective

    def prepared(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """The rows as tokens.

        Args:
            tokenizer: of the model that reads them.

        Returns:
            `held_out` has them.

        Raises:
            UserError: they cannot be read or rendered, or there are none.
        """
        prepared = prepare(self.recipe, tokenizer)
        if self.is_whole:
            return replace(prepared, held_out=prepared.train)
        if not len(prepared.held_out):
            what = self.run or self.origin
            raise UserError(
                f"{what} has no held-out rows to evaluate on. Set data.held_out, or data.folds, in a new run."
            )
        return prepared

    @cached_property
    def examples(self) -> list[Example]:
        """The rows as they are read."""
        data, formats = self.recipe.data, self.objective.formats
        return (
            list(examples(data, formats, data.train, DataReport()))
            if self.is_whole
            else held_out_examples(data, formats)
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what the rows say, wherever they are stored."""
        contents = (
            {field: value for field, value in asdict(row).items() if field != "source"} for row in self.examples
        )
        return digest_of(list(contents))

    @cached_property
    def training_examples(self) -> list[Example]:
        """The rows that a run of the recipe is trained on, as they are read."""
        return training_examples(self.recipe.data, self.objective.formats)

    def answer_bytes(self, units: Sequence[str], only_last: bool = False) -> NDArray[np.int64] | None:
        """How long the texts with a loss are, to compare losses of models with different tokenizers.

        Args:
            units: what the rows are called, as `units_of` calls them.
            only_last: whether of a chat the last answer alone has a loss.

        Returns:
            (rows,) UTF-8 bytes of a row's answers, or of its raw text; None if a row is in several pieces.
        """
        lengths = {str(example.source): _answer_bytes(example, only_last) for example in self.examples}
        known = [lengths.get(unit) for unit in units]
        return None if None in known else np.array(known, np.int64)

    def tasks(self, count: int | None) -> list[Task]:
        """Questions with their expected answers.

        Args:
            count: how many, evenly spaced; None: all.

        Returns:
            The tasks; none if the rows are raw text.
        """
        chats = [example for example in self.examples if example.messages is not None]
        return [task_of(chats[index]) for index in spread(len(chats), len(chats) if count is None else count)]

    def labeled(self, table: TokenTable) -> list[Task]:
        """Every text with its target in words, for a head that does not write text.

        Args:
            table: the rows as tokens.

        Returns:
            The tasks; none if targets have no form in words.
        """
        head = self.objective.head
        expected = [head.describe_target(table.targets_of(row)) for row in range(len(table))]
        if None in expected:
            return []
        texts = {
            str(each.source): str(each.text if each.messages is None else each.messages[-1]["content"])
            for each in self.examples
        }
        sources = [str(table.source(row)) for row in range(len(table))]
        return [
            Task(({"role": "user", "content": texts[source]},), str(target), source)
            for source, target in zip(sources, expected, strict=True)
        ]


def _answer_bytes(example: Example, only_last: bool) -> int:
    """Bytes of a row's answers and their reasoning, or of its raw text."""
    if example.messages is None:
        return len(str(example.text).encode())
    answers = [reasoning_of(message) for message in example.messages if message["role"] == "assistant"]
    return sum(len(part.encode()) for parts in (answers[-1:] if only_last else answers) for part in parts)


def answered(example: Example) -> Example | None:
    """The example as a chat that ends with its answer.

    Args:
        example: any; of several completions, the best one is the answer, and of a prompt, its column `answer`.

    Returns:
        The chat, or raw text as it is; None if nothing is known of the answer.
    """
    messages = example.messages or ()
    if example.completions:
        best = max(example.completions, key=lambda completion: completion.score)
        return replace(example, messages=(*messages, *best.messages), completions=())
    if example.messages is None or any(message["role"] == "assistant" for message in messages):
        return example
    answer = example.columns.get(ANSWER)
    if answer is None:
        return None
    return replace(example, messages=(*messages, {"role": "assistant", "content": str(answer)}))


def task_of(example: Example) -> Task:
    """The last answer of a chat, and the messages before it.

    Args:
        example: a chat with an answer; of several completions, the best one is expected.

    Returns:
        The task.
    """
    chat = answered(example)
    messages = () if chat is None else chat.messages or ()
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    reasoning, expected = reasoning_of(messages[last])
    return Task(messages[:last], expected, str(example.source), reasoning)


def units_of(table: TokenTable) -> list[str]:
    """What the rows of a table are called, each differently: a row in several pieces has their numbers.

    Args:
        table: the rows.

    Returns:
        (rows,) names.
    """
    seen: dict[str, int] = {}
    names = []
    for row in range(len(table)):
        name = str(table.source(row))
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}, part {seen[name]}")
    return names


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spaced over `total`, or all of them if there are fewer."""
    return [round(index) for index in np.linspace(0, total - 1, min(count, total))]
