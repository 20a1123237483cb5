"""Held-out rows that are also among those to train on, as the check of leakage finds them, of rows in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tunesmith.checks.near_runs import Sets, similar_rows
from tunesmith.checks.record import Record, record_of
from tunesmith.checks.sketch import VIEWS, Arrays, arrays_of, sketch
from tunesmith.checks.word_runs import RUN, known_runs, word_runs
from tunesmith.data.example import Example, Source

BATCH = 1024
"""Rows that are sketched at once."""

WHAT = {"text": "the same as", "prompt": "the same input as"}
"""By what of two rows is alike."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Why a row is leaked.

    Attributes:
        detail: what it has in common with the other row, as a clause with the row's name.
        other: the row.
    """

    detail: str
    other: Source


def leaked_rows(rows: Sequence[Example], others: Iterable[Example]) -> dict[int, Leak]:
    """The rows that are the same as another one, or 80 % the same, by all of their texts or by their input, or that
    have 13 words in a row in common with it.

    Args:
        rows: held out, for example. Their sketches are in memory.
        others: trained on. Of each its sketch stays in memory, not its texts.

    Returns:
        By the index of the row, in order.
    """
    sources: list[Source] = []
    parts: list[Arrays] = []
    for batch in _batches(others):
        records = [record_of(example) for example in batch]
        sources += [record.source for record in records]
        parts.append(_sketched(records)[0])
    own, texts = _sketched([record_of(example) for example in rows])
    if not sources or not texts:
        return {}
    every = {name: np.concatenate([part[name] for part in (*parts, own)]) for name in own}
    known = known_runs(every["runs"][: len(every["runs"]) - len(own["runs"])], every["run_counts"][: len(sources)])
    found: dict[int, Leak] = {}
    for row, other, what in (*_same(every, len(sources)), *_near(every, len(sources))):
        found.setdefault(row, Leak(f"{what} {sources[other]}", sources[other]))
    for row, other, words in known.shared(texts):
        detail = f"{RUN} words in a row are those of {sources[other]}: {words!r}"
        found.setdefault(row, Leak(detail, sources[other]))
    return dict(sorted(found.items()))


Pair = tuple[int, int, str]
"""The index of a row, that of another one, and what they have in common."""


def _same(every: Arrays, given: int) -> Iterator[Pair]:
    for column, what in (("whole", WHAT["text"]), ("prompt", WHAT["prompt"])):
        first: dict[int, int] = {}
        for other, value in enumerate(every[column][:given].tolist()):
            first.setdefault(value, other)
        for row, value in enumerate(every[column][given:].tolist()):
            if value and value in first:
                yield row, first[value], what


def _near(every: Arrays, given: int) -> Iterator[Pair]:
    for view in VIEWS:
        sets = Sets(*(every[f"{view}_{name}"] for name in ("shingles", "counts", "bands")))
        pairs = similar_rows(sets, given=given)
        for at in np.lexsort((-pairs.similarities, pairs.rows)).tolist():
            yield (
                int(pairs.rows[at]) - given,
                int(pairs.others[at]),
                f"{pairs.similarities[at]:.0%} {WHAT[view]}",
            )


def _sketched(records: Sequence[Record]) -> tuple[Arrays, list[str]]:
    """The columns that are compared, and the normalized texts."""
    sketches = [sketch(record, groups=0, sentiment=0) for record in records]
    texts = [each.texts["text"] for each in sketches]
    arrays = arrays_of(sketches, VIEWS)
    arrays["runs"], arrays["run_counts"] = word_runs(texts)
    return arrays, texts


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(islice(iterator, BATCH)):
        yield batch
