"""Which columns of rows in no known format could be what: from their names and from what is in them."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tunesmith.data.example import Row
from tunesmith.data.row_formats import FORMATS

FEW = 3
"""Suggestions at most."""

_ANSWER = re.compile(r"answer|repl|respon|output|complet|target|summary|translat|agent|assistant|bot|solution", re.I)
_QUESTION = re.compile(r"question|query|prompt|input|instruct|source|original|document|article|user|customer|ask", re.I)
_NO_TEXT = re.compile(r"(^|_)(id|uid|uuid|url|urls|link|date|time|index|key|hash)$", re.I)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A reading of the rows.

    Attributes:
        columns: field → column, for `data.columns`.
        means: what the rows would be.
        more: other fields of the recipe that it needs.
    """

    columns: Mapping[str, str]
    means: str
    more: str = ""

    def __str__(self) -> str:
        named = ", ".join(f"{field}: {column}" for field, column in self.columns.items())
        return f"{self.means}: data.columns: {{{named}}}{self.more}"


def suggested(rows: Sequence[Row]) -> list[Suggestion]:
    """Readings of the rows, the likeliest first.

    Args:
        rows: the first rows.

    Returns:
        A few; none if no column holds texts.
    """
    values = _values(rows)
    by_name = _by_name(list(values))
    wordy = [column for column in values if _has_words(column, values[column])]
    texts = [column for column in wordy if len(set(map(str, values[column]))) * 2 > len(values[column])]
    if len(values) == len(wordy) == 2:
        texts = wordy
    labels = [column for column in values if column not in texts and _is_label(column, values[column])]
    found = [*by_name, *(_of_texts(texts, values)), *(_of_labels(texts, labels))]
    if texts:
        longest = max(texts, key=lambda column: _length(values[column]))
        found.append(Suggestion({"text": longest}, "raw text", ", data.format: text, objective: {kind: text}"))
    return found[:FEW]


def _values(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The values of each column, without empty ones."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for column, value in row.values.items() if isinstance(row.values, dict) else ():
            if str(column).strip():
                values.setdefault(str(column), []).extend([value] if value not in (None, "") else [])
    return values


def _by_name(columns: list[str]) -> list[Suggestion]:
    """The format whose usual names are nearly those of the columns."""
    lower = {column.lower(): column for column in columns}
    for name, format in FORMATS.items():
        for names in format.columns:
            near = [difflib.get_close_matches(each, lower, n=1, cutoff=0.8) for each in names]
            chosen = [lower[match[0]] for match in near if match]
            if len(names) > 1 and len(set(chosen)) == len(names):
                return [Suggestion(dict(zip(format.columns[0], chosen, strict=True)), format.noun, _objective(name))]
    return []


def _objective(format: str) -> str:
    kind = FORMATS[format].objective
    return f", objective: {{kind: {kind}}}" if kind else ""


def _of_texts(texts: Sequence[str], values: Mapping[str, list[Any]]) -> list[Suggestion]:
    """Two texts: a question and its answer; if they are alike, they may also be compared."""
    if len(texts) < 2:
        return []
    answer = next((column for column in texts if _ANSWER.search(column)), None)
    question = next((column for column in texts if column != answer and _QUESTION.search(column)), None)
    first = question or next(column for column in texts if column != answer)
    second = answer or next(column for column in texts if column != first)
    exchange = Suggestion({"question": first, "answer": second}, "questions and answers")
    if answer or question or not _are_alike(values[first], values[second]):
        return [exchange]
    compared = Suggestion(
        {"chosen": first, "rejected": second}, "a better and a worse text", ", objective: {kind: dpo}"
    )
    return [compared, exchange]


def _of_labels(texts: Sequence[str], labels: Sequence[str]) -> list[Suggestion]:
    if not texts or not labels:
        return []
    columns = {"text": texts[0], "label": labels[0]}
    return [Suggestion(columns, "texts with classes", ", objective: {kind: classification}")]


def _has_words(column: str, values: Sequence[Any]) -> bool:
    """Whether most values are several words."""
    words = [value for value in values if isinstance(value, str) and len(value.split()) > 2]
    return not _NO_TEXT.search(column) and len(words) * 2 > max(1, len(values))


def _is_label(column: str, values: Sequence[Any]) -> bool:
    """Whether there are a few different short values, most of them more than once."""
    if _NO_TEXT.search(column) or not all(isinstance(value, str | int | bool) for value in values):
        return False
    different = set(map(str, values))
    return 2 <= len(different) <= max(2, len(values) // 3) and max(map(len, different)) <= 40


def _length(values: Sequence[Any]) -> float:
    return fmean([len(str(value)) for value in values] or [0])


def _are_alike(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether the texts of two columns share most of their words, row by row."""
    shared = [
        len({*str(one).split()} & {*str(other).split()}) / max(1, len({*str(one).split()} | {*str(other).split()}))
        for one, other in zip(first, second, strict=False)
    ]
    return fmean(shared or [0]) > 0.5
