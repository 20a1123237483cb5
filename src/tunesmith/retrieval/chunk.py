"""Chunks: the parts of a document that are found and cited.

A chunk never crosses a heading, and knows the headings above it. Blocks stay whole while they fit: a longer paragraph
is cut between sentences, a longer table between rows, each part with the rows that name the columns. Code is never cut.
Only a sentence that is longer than a chunk is cut inside; its parts overlap, so that no phrase is lost at the cut.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from tunesmith.data.documents.document import Block, Document
from tunesmith.retrieval.sentences import sentence_spans

SIZE = 200
"""The most tokens (without an encoder: words) in a chunk, headings included."""

OVERLAP = 8
"""A part of a cut sentence repeats one part in so many of the size."""

Count = Callable[[Sequence[str]], Sequence[int]]
"""The sizes of texts, in the encoder's tokens or in words."""

LINES = 4
"""A sentence with more line ends is code or a table, and counts line by line."""

_WORD = re.compile(r"\S+")
_ROW = re.compile(r"[^\n]*\S[^\n]*")
_LINE = re.compile(r"\S[^\n]*")


class Sentence(NamedTuple):
    """A sentence of a chunk; of code and of a table, a line.

    Attributes:
        start: offset of its first character in the chunk's text.
        end: offset after its last.
        first: its first line in the file, from 1.
        last: its last line.
    """

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document.

    Attributes:
        text: as in the document, or as extracted from it; a cut table begins with the rows that name its columns.
        headings: above it, the outermost first.
        bytes: its first byte in the file, and the byte after its last; in a PDF's extracted text.
        lines: its first and last line, from 1; in a PDF's extracted text.
        page: from 1; None if the format has no pages.
        sentences: of the text, in order.
    """

    text: str
    headings: tuple[str, ...]
    bytes: tuple[int, int]
    lines: tuple[int, int]
    page: int | None = None
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is not cut further: a block, a sentence, a row, or a part of a very long sentence."""

    start: int
    end: int
    header: tuple[int, int] | None = None
    """The rows that name the columns, if it is a row below them."""
    is_part: bool = False
    """Whether it overlaps the piece before it."""


def word_counts(texts: Sequence[str]) -> list[int]:
    """The words of each text.

    Args:
        texts: any.

    Returns:
        Runs of characters without white space.
    """
    return [len(text.split()) for text in texts]


def searched_text(text: str, headings: Sequence[str]) -> str:
    """What of a chunk is searched and embedded.

    Args:
        text: of the chunk.
        headings: above it.

    Returns:
        Its headings, which may hold the words that its text leaves out, and its text.
    """
    return f"{' › '.join(headings)}\n{text}" if headings else text


def chunks_of(document: Document, size: int = SIZE, count: Count = word_counts) -> list[Chunk]:
    """Cut a document into chunks.

    Args:
        document: as read.
        size: the most tokens in a chunk, with its headings; only code may be longer.
        count: of tokens.

    Returns:
        The chunks, in order; every word of the document is in one of them.
    """
    chunks = []
    for headings, blocks in _sections(document):
        room = max(size - count([" › ".join(headings)])[0], size // 2)
        pieces = [piece for block in blocks for piece in _pieces(document.text, block, room, count)]
        lengths = count([document.text[piece.start : piece.end] for piece in pieces])
        chunks += [_chunk(document, headings, group) for group in _packed(pieces, lengths, room)]
    return chunks


def _sections(document: Document) -> Iterator[tuple[tuple[str, ...], list[Block]]]:
    """The headings above, and the blocks below them up to the next heading. A heading with nothing below it, not even
    another heading, is a block itself."""
    path: list[tuple[int, str]] = []
    section: list[Block] = []
    pending: Block | None = None
    for block in document.blocks:
        if block.kind != "heading":
            section.append(block)
            pending = None
            continue
        if pending is not None and block.level <= pending.level:
            section.append(pending)
        if section:
            yield tuple(title for _, title in path), section
        path = [entry for entry in path if entry[0] < block.level] + [(block.level, block.title)]
        section, pending = [], block
    if pending is not None:
        section.append(pending)
    if section:
        yield tuple(title for _, title in path), section


def _pieces(text: str, block: Block, room: int, count: Count) -> list[_Piece]:
    """A block that fits as it is, else cut."""
    start, end = _stripped(text, block.start, block.end)
    if start == end:
        return []
    if block.kind == "code" or count([text[start:end]])[0] <= room:
        return [_Piece(start, end)]
    return _rows(text, block) if block.kind == "table" else _sentences(text, start, end, room, count)


def _rows(text: str, table: Block) -> list[_Piece]:
    header = (table.start, table.header_end) if table.header_end > table.start else None
    rows = [row.span() for row in _ROW.finditer(text, max(table.start, table.header_end), table.end)]
    pieces = [_Piece(start, end, header) for start, end in rows]
    return [_Piece(table.start, pieces[0].end), *pieces[1:]] if pieces else [_Piece(table.start, table.end)]


def _sentences(text: str, start: int, end: int, room: int, count: Count) -> list[_Piece]:
    spans = [(start + first, start + last) for first, last in sentence_spans(text[start:end])]
    lengths = count([text[first:last] for first, last in spans])
    pieces: list[_Piece] = []
    for (first, last), length in zip(spans, lengths, strict=True):
        pieces += [_Piece(first, last)] if length <= room else _parts(text, first, last, room, count)
    return pieces


def _parts(text: str, start: int, end: int, room: int, count: Count) -> list[_Piece]:
    """A long sentence in overlapping parts, cut between words; a word longer than a chunk stays whole."""
    words = [match.span() for match in _WORD.finditer(text, start, end)]
    lengths = count([text[first:last] for first, last in words])
    pieces: list[_Piece] = []
    first = last = 0
    while last < len(words):
        last = _fitting(lengths, first, room)
        pieces.append(_Piece(words[first][0], words[last - 1][1], is_part=bool(pieces)))
        first = max(first + 1, last - _fitting(lengths[first:last][::-1], 0, room // OVERLAP, least=0))
    return pieces


def _fitting(lengths: Sequence[int], first: int, room: int, least: int = 1) -> int:
    """The index after the last word, of those from `first`, that fits with the words before it."""
    used = list(accumulate(lengths[first:]))
    return first + max(least, bisect_right(used, room))


def _packed(pieces: Sequence[_Piece], lengths: Sequence[int], room: int) -> Iterator[list[_Piece]]:
    """Pieces that together fit, in order."""
    group: list[_Piece] = []
    used = 0
    for piece, length in zip(pieces, lengths, strict=True):
        if group and (used + length > room or piece.is_part):
            yield group
            group, used = [], 0
        group.append(piece)
        used += length
    if group:
        yield group


def _chunk(document: Document, headings: tuple[str, ...], pieces: Sequence[_Piece]) -> Chunk:
    start, end = pieces[0].start, pieces[-1].end
    above = pieces[0].header or (start, start)
    where = document.positions
    sentences = [*_located(document, *above, 0), *_located(document, start, end, above[1] - above[0])]
    text = document.text[slice(*above)] + document.text[start:end]
    page = document.page(start)
    return Chunk(text, headings, where.bytes(start, end), where.lines(start, end), page, tuple(sentences))


def _located(document: Document, start: int, end: int, before: int) -> Iterator[Sentence]:
    """The sentences of a part of the document, which has `before` characters before it in its chunk."""
    text = document.text[start:end]
    for first, last in sentence_spans(text):
        lines = [(first, last)]
        if text.count("\n", first, last) > LINES:
            lines = [match.span() for match in _LINE.finditer(text, first, last)]
        for begin, stop in lines:
            yield Sentence(before + begin, before + stop, *document.positions.lines(start + begin, start + stop))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without empty lines and white space at its ends; the first line keeps its indentation."""
    part = text[start:end]
    if not part.strip():
        return start, start
    inner = start + len(part) - len(part.lstrip())
    line = text.rfind("\n", start, inner) + 1
    return max(start, line), end - len(part) + len(part.rstrip())
