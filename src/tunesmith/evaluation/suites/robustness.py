"""Robustness: how the task's score moves when the user's own prompts are typed badly, and what becomes of odd input.

Rules change how a prompt is written. None of them can say the same in other words, so this says nothing about
paraphrases.
"""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task, spread
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.task_score import main_metric, prompt_of, scored
from tunesmith.metrics import Metric
from tunesmith.metrics.coherence import is_empty, loops
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Answer, Chat, Subject

ROWS = 50
"""Questions that are asked in every way, at most."""

TYPOS = 0.05
"""The share of letters that are mistyped."""

LONG = 200
"""Words of other text before a long prompt; about four thirds as many tokens."""

BLANK = ("", " ", "\n\n", ".", "?", "...", "-", "a", "0", "#")
"""Inputs that ask nothing."""

NEIGHBORS = {
    letter: row[max(0, index - 1) : index] + row[index + 1 : index + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for index, letter in enumerate(row)
}
"""The keys beside each key of a keyboard."""

_FILLER = "The weather was mild that week, and the shop on the corner opened an hour late. Nobody seemed to mind."

Change = Callable[[str, random.Random], str]
"""Maps a prompt, with random numbers, to the prompt written in another way."""


def with_typos(text: str, draw: random.Random, share: float = TYPOS) -> str:
    """A text as typed in a hurry: letters left out, doubled, swapped with the next one, or the key beside.

    Args:
        text: any text.
        draw: random numbers.
        share: of the letters that are mistyped.

    Returns:
        The text; all that is no letter stays, and stays where it is.
    """
    letters = list(text)
    for index, letter in enumerate(letters):
        if letter.isalpha() and draw.random() < share:
            kind = draw.choice(("drop", "double", "swap", "beside"))
            if kind == "swap" and index + 1 < len(letters) and letters[index + 1].isalpha():
                letters[index], letters[index + 1] = letters[index + 1], letter
            elif kind == "drop":
                letters[index] = ""
            elif kind == "double":
                letters[index] = letter * 2
            else:
                near = draw.choice(NEIGHBORS.get(letter.lower(), letter))
                letters[index] = near.upper() if letter.isupper() else near
    return "".join(letters)


def without_punctuation(text: str) -> str:
    """A text of which letters, digits and white space are left.

    Args:
        text: any text.

    Returns:
        The rest.
    """
    return "".join(each for each in text if each.isalnum() or each.isspace())


CHANGES: Mapping[str, tuple[str, Change]] = {
    "typos": ("typos", with_typos),
    "lower_case": ("lower case", lambda text, draw: text.lower()),
    "upper_case": ("upper case", lambda text, draw: text.upper()),
    "no_punctuation": ("no punctuation", lambda text, draw: without_punctuation(text)),
    "white_space": (
        "white space doubled",
        lambda text, draw: text.replace(" ", "  ").replace("\n", "\n\n"),
    ),
    "small_talk": (
        "greeting and thanks",
        lambda text, draw: f"Hi there! Could you please help me with this?\n\n{text}\n\nThanks a lot!",
    ),
}
"""What is done to prompts, by the figure's name: its title, and the function."""


class Robustness:
    """Scores answers to the same questions, typed in several ways."""

    most_rows = ROWS

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation, whose questions are asked.

        Returns:
            The score on prompts as they are (`as_is`) and by each change; `lost_` and its name: how much of a row's
            score is lost by it, on average; and the share of answers to blank and to long input that are neither empty
            nor a loop.

        Raises:
            UserError: there are no questions; the model does not write text, or its context is too short.
        """
        if not context.tasks:
            raise UserError("The suite robustness types your own questions badly, and there are none. Set --rows.")
        tasks = [context.tasks[index] for index in spread(len(context.tasks), ROWS)]
        asking = _Asking(subject, context, total=len(tasks) * (len(CHANGES) + 2) + len(BLANK))
        metric = main_metric([task.expected for task in tasks])
        before = asking.scores(tasks, metric, lambda text, draw: text)
        figures = {"as_is": _score(before, tasks, metric, "as it is")}
        for name, (manner, change) in CHANGES.items():
            after = asking.scores(tasks, metric, change)
            figures[name] = _score(after, tasks, metric, manner)
            figures[f"lost_{name}"] = _lost(before, after, tasks, manner)
        blank = [with_prompt(tasks[0].chat, text) for text in BLANK]
        long = [with_prompt(task.chat, f"{filler()}\n\n{prompt_of(task)}") for task in tasks]
        figures["answered_blank"] = asking.answered(blank, [repr(text) for text in BLANK], "blank input")
        figures["answered_long"] = asking.answered(long, [task.source for task in tasks], "long input")
        return figures


class _Asking:
    """Asks a model, and counts what is asked."""

    def __init__(self, subject: Subject, context: SuiteContext, total: int) -> None:
        self._subject, self._context, self._total, self._done = subject, context, total, 0

    def answers(self, chats: Sequence[Chat]) -> list[Answer]:
        before = self._done

        def report(count: int) -> None:
            self._context.progress("robustness", before + count, self._total)

        self._done += len(chats)
        return self._subject.answers(chats, self._context.sampling, report)

    def scores(self, tasks: Sequence[Task], metric: Metric, change: Change) -> NDArray[np.float64]:
        """(tasks,) the score of each answer to a changed prompt."""
        chats = [with_prompt(task.chat, change(prompt_of(task), _draw_of(task))) for task in tasks]
        return scored(metric, self.answers(chats), [task.expected for task in tasks])

    def answered(self, chats: Sequence[Chat], units: Sequence[str], title: str) -> Measured:
        """The share of answers that are neither empty nor a loop."""
        answers = [final_answer(answer.text) for answer in self.answers(chats)]
        good = [float(not is_empty(answer, "") and not loops(answer)) for answer in answers]
        return mean_of(good, units, f"answered: {title}", f"answers to {title} that are neither empty nor a loop")


def with_prompt(chat: Chat, text: str) -> Chat:
    """A chat with another last turn.

    Args:
        chat: the user's turn last.
        text: what the user says instead.

    Returns:
        The chat.
    """
    return [*chat[:-1], {**chat[-1], "content": text}]


def filler() -> str:
    """Text that has nothing to do with any task, of `LONG` words."""
    sentence = _FILLER.split()
    return " ".join(sentence[index % len(sentence)] for index in range(LONG))


def _draw_of(task: Task) -> random.Random:
    """The same random numbers for the same row, whatever else is asked."""
    return random.Random(zlib.crc32(task.source.encode()))


def _score(values: NDArray[np.float64], tasks: Sequence[Task], metric: Metric, manner: str) -> Measured:
    units = [task.source for task in tasks]
    return mean_of(values, units, f"{metric.title}: {manner}", f"{metric.explanation}; prompt: {manner}")


def _lost(before: NDArray[np.float64], after: NDArray[np.float64], tasks: Sequence[Task], manner: str) -> Measured:
    explanation = f"how much of a row's score is lost if the prompt is changed: {manner}"
    units = [task.source for task in tasks]
    figure = mean_of(np.maximum(before - after, 0.0), units, f"lost: {manner}", explanation, "lower")
    return replace(figure, is_compared=False)
