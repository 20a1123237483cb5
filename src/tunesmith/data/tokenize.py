"""Many examples to tokens: chunk by chunk, in processes of their own where there are many, in order."""

import ctypes
import gc
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import current_process, get_context
from typing import Protocol

from tunesmith.data.check import fault
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.split import is_held_out
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import Tokens, TokenTable

ROWS = 512
"""Rows of a chunk: enough for the tokenizer to use all cores, little memory."""

ROWS_ALONE = 2_048
"""Rows that are done before other processes are asked to help."""

CHUNKS_AHEAD = 2
"""Chunks that are under way for each process, beyond the one that is waited for."""

DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


class Renders(Protocol):
    """An objective, as far as it says what of an example is read and learnt."""

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]: ...


@dataclass
class Chunk:
    """Some rows' tokens.

    Attributes:
        sides: the tokens of those to train on, and of those held out.
        unusable: rows that cannot be learnt from, and why.
        separate_turns: earlier turns that are examples of their own.
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
        objective: what it learns of an example.
        renderer: for the base's tokenizer.
        held_out: the share of examples that is held out, 0 if none of these is, 1 if all are; or those examples' keys.
    """

    objective: Renders
    renderer: Renderer
    held_out: float | frozenset[bytes]

    def chunk(self, examples: Sequence[Example]) -> Chunk:
        """The examples' tokens, looked at before any cut hides what is wrong."""
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
            separate_turns += len(rendered) - 1
        kept: tuple[list[Tokens], ...] = ([], [])
        tokens = self.renderer.tokenize_many([rendering for rendering, _, _ in rows])
        for (rendering, source, side), tokenized in zip(rows, tokens, strict=True):
            reason = fault(self.renderer, rendering, tokenized)
            if reason is None:
                told = () if rendering.targets is None else (rendering.targets,)
                kept[side].append((*tokenized, source, *told))
            else:
                unusable.append((source, reason))
        longest = max((len(row[0]) for side in kept for row in side), default=0)
        train, held_out = (TokenTable.build(side) for side in kept)
        return Chunk((train, held_out), unusable, separate_turns, longest)

    def all(self, examples: Iterable[Example]) -> Iterator[Chunk]:
        """Chunk by chunk, in order: here at first, then on all cores, if they are many."""
        chunks = _chunks(iter(examples))
        for _, chunk in zip(range(ROWS_ALONE // ROWS), chunks, strict=False):
            yield self.chunk(chunk)
        further = list(islice(chunks, 2))
        cores = _cores() if len(further) > 1 else 1
        if cores == 1:
            yield from map(self.chunk, chain(further, chunks))
            return
        with _helpers(self, cores) as pool:
            under_way = deque(pool.submit(_help, chunk) for chunk in further)
            for chunk in chunks:
                under_way.append(pool.submit(_help, chunk))
                if len(under_way) > cores * CHUNKS_AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()


def _chunks(source: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(source, ROWS)):
        yield chunk


def _cores() -> int:
    """That may be used for processes forked from this one; 1 where there can be none, or forking is not safe."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and not current_process().daemon else 1


@contextmanager
def _helpers(tokenizer: Tokenizer, count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that tokenize; they end with this one, however it ends."""
    gc.freeze()  # here and there, garbage is looked for among what is new
    pool = ProcessPoolExecutor(count, get_context("fork"), _begin_helping, (tokenizer, os.getpid()))
    try:
        with warnings.catch_warnings():
            # They use no lock that another thread could hold, which is what is warned of from Python 3.12 on.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


_helped: Tokenizer
"""In a helper: what it tokenizes with, as it was when the helper was forked."""


def _begin_helping(tokenizer: Tokenizer, parent: int) -> None:
    global _helped
    _helped = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its helpers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked


def _help(examples: Sequence[Example]) -> Chunk:
    return _helped.chunk(examples)
