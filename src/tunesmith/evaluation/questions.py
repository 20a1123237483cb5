"""What models are asked: the last question of each row of a file, whether the row has an answer or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.example import Example, Malformed, Message
from tunesmith.data.format_detection import detect, format_of_rows
from tunesmith.data.preferences import PREFERENCES
from tunesmith.data.read import Row, read
from tunesmith.data.row_formats import refuse_media, to_example
from tunesmith.data.turns import MalformedRowError
from tunesmith.errors import UserError

QUESTIONS = ("question", "prompt", "instruction", "query", "problem", "q")
"""Columns that hold the question, in a row that has no answer."""

ANSWERS = {
    "answer", "response", "completion", "output", "solution", "a", "messages", "conversations", "chosen", "completions",
    "responses",
}  # fmt: skip
"""Columns that hold answers, or both question and answers."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked.

    Attributes:
        chat: the turns before the answer.
        source: the row.
    """

    chat: tuple[Message, ...]
    source: str


def questions(paths: Sequence[str]) -> Iterator[Question]:
    """The messages of each row up to its last question, in any format of chats, with or without answers, or of human
    feedback.

    Args:
        paths: as `data.train` takes them.

    Returns:
        The questions, in order.

    Raises:
        UserError: a row has no question, or has tools.
    """
    for row in read(paths, Path.cwd()):
        if isinstance(row, Malformed):
            raise UserError(f"{row.source}: {row.reason}. Fix it: every row must have a question.")
        row = _with_answer(_without_media(row))
        format = format_of_rows([row])
        example = to_example(row, format if format in PREFERENCES else detect([row]))
        if isinstance(example, Malformed) or example.messages is None:
            raise UserError(f"{row.source} has no question: {getattr(example, 'reason', 'it is raw text')}.")
        if example.tools:
            raise UserError(f"{row.source} has tools, and answers here do not call tools. Remove such rows.")
        yield question_of(example)


def question_of(example: Example) -> Question:
    """What comes before the last answer of a chat, or before the answers that are compared.

    Args:
        example: a chat with an answer.

    Returns:
        The question.
    """
    messages = example.messages or ()
    if example.completions:
        return Question(messages, str(example.source))
    last = max(index for index, turn in enumerate(messages) if turn["role"] == "assistant")
    return Question(messages[:last], str(example.source))


def _without_media(row: Row) -> Row:
    """The row.

    Raises:
        UserError: it has images, audio or video.
    """
    try:
        refuse_media(row)
    except MalformedRowError as error:
        raise UserError(f"{row.source}: {error}.") from None
    return row


def _with_answer(row: Row) -> Row:
    """The row with a placeholder answer, if it has none."""
    if isinstance(row.values, str):
        return row
    values: dict[str, Any] = dict(row.values)
    turns = values.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "user":
        return Row({**values, "messages": [*turns, {"role": "assistant", "content": "…"}]}, row.source)
    columns = {str(column).lower(): value for column, value in values.items() if value is not None}
    question = next((column for column in QUESTIONS if column in columns), None)
    if question is None or columns.keys() & ANSWERS:
        return row
    if question == "instruction":
        return Row({**columns, "output": "…"}, row.source)
    context = {column: columns[column] for column in ("context", "system") if column in columns}
    return Row({"question": columns[question], "answer": "…"} | context, row.source)
