"""Examples to tokens, chunk by chunk and in order; many examples in worker processes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Protocol

from tunesmith.data.check import find_problem
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering, Tokenized, joined
from tunesmith.data.split import is_held_out
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.data.workers import cores, in_order, workers
from tunesmith.garbage_collection import only_new_objects_collected

ROWS = 512
"""Rows of a chunk: enough for the tokenizer to use all cores, few enough to need little memory."""

ROWS_ALONE = 2_048
"""Rows that this process tokenizes before it starts worker processes."""


class Renders(Protocol):
    """The part of an objective that renders an example."""

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]: ...


@dataclass
class Chunk:
    """The tokens of some rows.

    Attributes:
        sides: the token tables of the training and the held-out rows.
        unusable: rows that cannot be trained on, and why.
        separate_turns: earlier turns that became examples of their own.
        longest: tokens of the longest example.
    """

    sides: tuple[TokenTable, TokenTable]
    unusable: list[tuple[Source, str]] = field(default_factory=list)
    separate_turns: int = 0
    longest: int = 0


@dataclass(frozen=True)
class Tokenizer:
    """Renders, tokenizes and checks.

    Attributes:
        objective: renders the examples.
        renderer: for the base's tokenizer.
        held_out: the held-out share of the examples, 0 for none, 1 for all; or the keys of the held-out examples.
    """

    objective: Renders
    renderer: Renderer
    held_out: float | frozenset[bytes]

    def chunk(self, examples: Sequence[Example]) -> Chunk:
        """The examples' tokens, checked before truncation can hide a fault."""
        unusable: list[tuple[Source, str]] = []
        rows: list[tuple[Rendering, Source, bool]] = []
        separate_turns = 0
        for example in examples:
            try:
                rendered = self.objective.render(self.renderer, example)
            except UnusableError as error:
                unusable.append((example.source, str(error)))
                continue
            side = is_held_out(example, self.held_out)
            rows.extend((rendering, example.source, side) for rendering in rendered)
            separate_turns += 0 if example.completions else len(rendered) - 1
        kept: tuple[list[Tokens], ...] = ([], [])
        tokens = iter(self.renderer.tokenize_many([text for rendering, _, _ in rows for text in _texts(rendering)]))
        for rendering, source, side in rows:
            tokenized = list(islice(tokens, len(_texts(rendering))))
            reason = self._problem(rendering, tokenized)
            if reason is None:
                kept[side].append(_row(rendering, tokenized, source))
            else:
                unusable.append((source, reason))
        longest = max((len(row[0]) for side in kept for row in side), default=0)
        train, held_out = (TokenTable.build(side) for side in kept)
        return Chunk((train, held_out), unusable, separate_turns, longest)

    def _problem(self, rendering: Rendering, tokenized: Sequence[Tokenized]) -> str | None:
        """As `find_problem`, of the first of a row's texts that has one."""
        for number, (text, tokens) in enumerate(zip(_texts(rendering), tokenized, strict=True), 1):
            if (reason := find_problem(self.renderer, text, tokens)) is not None:
                return f"completion {number}: {reason}" if rendering.completions else reason
        return None

    def all(self, examples: Iterable[Example]) -> Iterator[Chunk]:
        """The chunks in order: the first ones from this process, many more from workers on all cores."""
        chunks = _chunks(iter(examples))
        for _, chunk in zip(range(ROWS_ALONE // ROWS), chunks, strict=False):
            yield self.chunk(chunk)
        further = list(islice(chunks, 2))
        count = cores() if len(further) > 1 else 1
        if count == 1:
            yield from map(self.chunk, chain(further, chunks))
            return
        with only_new_objects_collected(), workers(count, _start_worker, self) as pool:  # in the workers too
            yield from in_order(pool, count, _tokenize_chunk, chain(further, chunks))


def _texts(rendering: Rendering) -> Sequence[Rendering]:
    """What is tokenized: the completions, or the rendering itself."""
    return rendering.completions or (rendering,)


def _row(rendering: Rendering, tokenized: Sequence[Tokenized], source: Source) -> Tokens:
    if rendering.completions:
        ids, mask, lengths = joined(tokenized, rendering.targets is not None)
        return ids, mask, source, rendering.targets, (tuple(lengths), rendering.scores)
    ids, mask = tokenized[0]
    return (ids, mask, source) if rendering.targets is None else (ids, mask, source, rendering.targets)


def _chunks(source: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(source, ROWS)):
        yield chunk


_worker_tokenizer: Tokenizer
"""In a worker: the tokenizer, as it was when the worker was forked."""


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _tokenize_chunk(examples: Sequence[Example]) -> Chunk:
    return _worker_tokenizer.chunk(examples)
