"""`tunesmith data diff A B`: which rows were added, removed and changed, and how labels and lengths have shifted."""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.checks.near_duplicates import near_duplicates
from tunesmith.curation.chance import hashed
from tunesmith.curation.origin import claimed
from tunesmith.curation.rows import Item, Paths, Rows
from tunesmith.data.example import Malformed, Source
from tunesmith.data.split import content_key
from tunesmith.run import Subscriber, atomic_write, writing

NEAREST = 0.5
"""The Jaccard similarity of two prompts from which a row is taken for a changed one."""

QUANTILES = (0.1, 0.5, 0.9, 1.0)
"""Of lengths, which are shown."""


@dataclass(frozen=True, slots=True)
class Change:
    """A row that is in both, with other content.

    Attributes:
        a: where it was.
        b: where it is.
        columns: whose values differ.
        similarity: of the prompts, by which the rows were matched; None: they have the same key or prompt.
    """

    a: Source
    b: Source
    columns: tuple[str, ...]
    similarity: float | None = None


@dataclass(frozen=True)
class Difference:
    """What `data_diff` found.

    Attributes:
        rows: of A and of B.
        unchanged: rows with the same content in both, wherever they are.
        added: rows of B alone.
        removed: rows of A alone.
        changed: rows of both, with other content.
        labels: rows by label, in A and in B; empty if the rows have no labels.
        relabeled: of changed rows, how often one label became another.
        lengths: characters of prompts and answers at `QUANTILES`, in A and in B.
        malformed: rows of A and of B that could not be read; they are compared with nothing.
        file: with the rows of `added`, `removed` and `changed`, if asked for.
    """

    rows: tuple[int, int]
    unchanged: int
    added: tuple[Source, ...]
    removed: tuple[Source, ...]
    changed: tuple[Change, ...]
    labels: Mapping[str, tuple[int, int]]
    relabeled: Mapping[tuple[str, str], int]
    lengths: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    malformed: tuple[int, int]
    file: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "relabeled"},
            "relabeled": [{"a": a, "b": b, "rows": rows} for (a, b), rows in self.relabeled.items()],
            "file": None if self.file is None else str(self.file),
        }


@dataclass
class _Side:
    """What is kept of one side's rows: hashes of content and key, and lengths."""

    content: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"prompt": [], "answer": []})
    malformed: int = 0

    @property
    def rows(self) -> int:
        return len(self.content) + self.malformed

    def quantiles(self, part: str) -> tuple[int, ...]:
        lengths = self.lengths[part]
        return tuple(int(value) for value in np.quantile(lengths, QUANTILES, method="lower")) if lengths else ()


Pairs = list[tuple[int, int, float | None]]
"""Rows of A and B that belong together, and their similarity."""


def data_diff(
    a: Paths,
    b: Paths,
    output: str | Path | None = None,
    *,
    key: str | None = None,
    subscribers: Sequence[Subscriber] = (),
) -> Difference:
    """Compare two versions of a data set, whatever the order of their rows.

    Rows with the same content are unchanged. Of the others, those with the same key, or without one the same prompt,
    are changed; then those whose prompts are nearest, if they share half of their words in order (Jaccard similarity of
    runs of three words). What is left was added or removed.

    Args:
        a: the files before, or a recipe.
        b: the files after, or a recipe.
        output: a file of JSON lines for the rows that differ; it must not exist.
        key: a column that identifies a row.
        subscribers: receive `progress` events.

    Returns:
        The difference.

    Raises:
        UserError: the rows cannot be read or have no such column, or the output exists.
    """
    target = None if output is None else Path(output)
    with nullcontext() if target is None else claimed(target):
        both = Rows(a, subscribers), Rows(b, subscribers)
        sides = _look(both[0], key), _look(both[1], key)
        same, left = _matched(sides[0].content, sides[1].content)
        pairs, left = _matched(sides[0].keys, sides[1].keys, left)
        matched = [one for one, *_ in pairs], [two for _, two, _ in pairs]
        items = [_items(both[at], sides[at], [*left[at], *matched[at]]) for at in (0, 1)]
        if key is None:
            near = _nearest(left, items)
            taken = {one for one, *_ in near}, {two for _, two, _ in near}
            pairs += near
            left = [[each for each in left[at] if each not in taken[at]] for at in (0, 1)]
        pairs.sort(key=lambda pair: pair[1])
        if target is not None:
            _write(target, items, left, pairs)
        return Difference(
            (sides[0].rows, sides[1].rows),
            len(same),
            tuple(sides[1].sources[each] for each in left[1]),
            tuple(sides[0].sources[each] for each in left[0]),
            tuple(_change(items[0][one], items[1][two], near) for one, two, near in pairs),
            {name: (sides[0].labels[name], sides[1].labels[name]) for name in sides[0].labels | sides[1].labels},
            _relabeled([(items[0][one], items[1][two]) for one, two, _ in pairs]),
            {part: (sides[0].quantiles(part), sides[1].quantiles(part)) for part in ("prompt", "answer")},
            (sides[0].malformed, sides[1].malformed),
            target,
        )


def _look(rows: Rows, key: str | None) -> _Side:
    side = _Side()
    for item in rows.items():
        record = item.record
        if record is None or isinstance(item.example, Malformed):
            side.malformed += 1
            continue
        side.content.append(hashed(_canonical(item)))
        side.keys.append(hashed(content_key(item.example) if key is None else item.column(key)))
        side.sources.append(item.source)
        side.indices.append(item.index)
        if record.label is not None:
            side.labels[record.label] += 1
        for part, text in (("prompt", record.prompt), ("answer", record.answer)):
            if text:
                side.lengths[part].append(len(text))
    return side


def _canonical(item: Item) -> str:
    """What is the same for two rows with the same columns, whatever their order."""
    return json.dumps(json.loads(item.line), sort_keys=True, ensure_ascii=False)


def _matched(
    first: Sequence[int], second: Sequence[int], left: Sequence[Sequence[int]] | None = None
) -> tuple[Pairs, list[list[int]]]:
    """Rows of both sides with the same key, each once, in order; and those that are left."""
    ones, others = left or (range(len(first)), range(len(second)))
    waiting: defaultdict[int, deque[int]] = defaultdict(deque)
    for each in ones:
        waiting[first[each]].append(each)
    pairs: Pairs = []
    rest = []
    for each in others:
        if waiting.get(second[each]):
            pairs.append((waiting[second[each]].popleft(), each, None))
        else:
            rest.append(each)
    return pairs, [sorted(each for queue in waiting.values() for each in queue), rest]


def _items(rows: Rows, side: _Side, wanted: Sequence[int]) -> dict[int, Item]:
    """Rows by their number among those that could be read."""
    numbers = {side.indices[each]: each for each in wanted}
    if not numbers:
        return {}
    return {numbers[line.index]: rows.item(line) for line in rows.lines("comparing") if line.index in numbers}


def _nearest(left: Sequence[Sequence[int]], items: Sequence[Mapping[int, Item]]) -> Pairs:
    """Rows whose prompts are alike, each once, the most similar ones first."""
    texts = [[_prompt(items[at][each]) for each in rest] for at, rest in enumerate(left)]
    found = sorted(near_duplicates(texts[1], texts[0], NEAREST), key=lambda near: (-near.similarity, near.text))
    taken: set[int] = set()
    pairs: Pairs = []
    for near in found:
        if near.other not in taken:
            taken.add(near.other)
            pairs.append((left[0][near.other], left[1][near.text], near.similarity))
    return pairs


def _change(one: Item, other: Item, similarity: float | None) -> Change:
    return Change(one.source, other.source, _columns(one, other), similarity)


def _prompt(item: Item) -> str:
    record = item.record
    assert record is not None
    return record.prompt or record.answer


def _columns(one: Item, other: Item) -> tuple[str, ...]:
    before, after = json.loads(one.line), json.loads(other.line)
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ("text",)
    missing = object()
    return tuple(name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing))


def _relabeled(pairs: Sequence[tuple[Item, Item]]) -> dict[tuple[str, str], int]:
    labels = [tuple(str(item.record and item.record.label) for item in pair) for pair in pairs]
    return dict(Counter((one, other) for one, other in labels if one != other).most_common())


def _write(target: Path, items: Sequence[Mapping[int, Item]], left: Sequence[Sequence[int]], pairs: Pairs) -> None:
    """The rows that differ, each with what it was and what it is."""
    with writing(target), atomic_write(target) as out:
        for line in _lines(items, left, pairs):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(
    items: Sequence[Mapping[int, Item]], left: Sequence[Sequence[int]], pairs: Pairs
) -> Iterator[dict[str, Any]]:
    for each in left[0]:
        yield {"change": "removed", "a": str(items[0][each].source), "before": json.loads(items[0][each].line)}
    for one, other, similarity in pairs:
        before, after = items[0][one], items[1][other]
        yield {
            "change": "changed", "a": str(before.source), "b": str(after.source), "similarity": similarity,
            "columns": _columns(before, after), "before": json.loads(before.line), "after": json.loads(after.line),
        }  # fmt: skip
    for each in left[1]:
        yield {"change": "added", "b": str(items[1][each].source), "after": json.loads(items[1][each].line)}
