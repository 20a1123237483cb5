"""Questions whose answers are known: where in the documents each one stands."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.retrieval.generation import Generation

FORM = (
    'Write {"question": …, "file": …, "lines": [first, last]}, {"question": …, "text": …}, several of these under '
    '"relevant", or "file": null if the documents hold no answer'
)


@dataclass(frozen=True, slots=True)
class Target:
    """A passage that answers a question.

    Attributes:
        file: that it is in; None: any.
        lines: its first and last line; None: the whole file.
        text: in it; empty: any.
    """

    file: str | None
    lines: tuple[int, int] | None = None
    text: str = ""

    def is_in(self, chunk: dict[str, Any]) -> bool:
        """Whether a chunk holds it, or a part of it."""
        if self.file is not None and self.file != chunk["file"]:
            return False
        if self.lines is not None and not (chunk["lines"][0] <= self.lines[1] and self.lines[0] <= chunk["lines"][1]):
            return False
        held, wanted = (" ".join(text.split()).casefold() for text in (chunk["text"], self.text))
        return not wanted or wanted in held or (held in wanted and bool(held))


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer's passages.

    Attributes:
        text: in words.
        source: file and row.
        targets: passages that answer it; none: the documents hold no answer.
        answer: what a good answer says; None: not known.
        is_synthetic: whether it was made from the documents.
    """

    text: str
    source: str
    targets: tuple[Target, ...]
    answer: str | None = None
    is_synthetic: bool = False

    @property
    def is_development(self) -> bool:
        """Whether it belongs to the half on which settings are tuned. The text decides, so that a question stays in its
        half when others are added."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 0


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file of questions.

    Args:
        path: of the file; each row has `question`, and `file` with or without `lines`, or `text`, or `relevant`: a list
            of these. `"file": null` or an empty list: the documents hold no answer. It may have `answer`.

    Returns:
        The questions.

    Raises:
        UserError: the file cannot be read, or a row has another form; it is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    questions = [_question(line, f"{path.name} row {row:,}") for row, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UserError(f"{path} has no questions. {FORM}.")
    return questions


def about_questions(path: Path, questions: Sequence[Question]) -> str:
    """What questions are, for tables.

    Args:
        path: of their file.
        questions: as read.

    Returns:
        Words; they say how many are synthetic.
    """
    count = sum(question.is_synthetic for question in questions)
    return f"questions of {path.name}" + (f", {count:,} of them synthetic" if count else "")


def _question(line: str, source: str) -> Question:
    try:
        row = json.loads(line)
        text = row["question"]
        relevant = row.get("relevant", [row])
        targets = tuple(target for each in relevant for target in _targets(each))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{source}: not a question with its passage. {FORM}.") from None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{source}: the question is empty. Write one, or remove the row.")
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise UserError(f"{source}: the answer is not text. Write one in words, or leave it out.")
    return Question(text, source, targets, answer, row.get("synthetic") is True)


def _targets(row: dict[str, Any]) -> Iterator[Target]:
    """The passage that a row names; none if it names no file.

    Raises:
        KeyError: it says nothing of a passage.
        ValueError: its lines are not two numbers.
    """
    if "text" not in row and row["file"] is None:
        return
    lines = row.get("lines")
    if lines is not None:
        first, last = (int(line) for line in lines)
        lines = (first, last)
    yield Target(row.get("file"), lines, str(row.get("text") or ""))


def relevant_chunks(version: Generation, questions: Sequence[Question]) -> list[frozenset[int]]:
    """The chunks that hold a passage of each question.

    Args:
        version: of the index.
        questions: as read.

    Returns:
        Numbers of chunks; none for a question without an answer.

    Raises:
        UserError: a question's passage is in no chunk.
    """
    of_file = {document.file: origin for document, origin in version.documents()}
    found = []
    for question in questions:
        chunks: set[int] = set()
        for target in question.targets:
            numbers: Sequence[int] = range(len(version))
            if target.file is not None:
                origin = of_file.get(target.file)
                numbers = () if origin is None else range(origin.first, origin.first + origin.chunks)
            chunks |= {number for number in numbers if target.is_in(version.chunk(number))}
        if question.targets and not chunks:
            target = question.targets[0]
            what = f"{target.file or 'any file'}{'' if target.lines is None else f', lines {list(target.lines)}'}"
            raise UserError(
                f"{question.source}: no chunk of the index holds its passage ({what}). Is the index up to date?"
            )
        found.append(frozenset(chunks))
    return found
