"""A document as read: its text, the blocks in it, and where each part is in its file."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal["heading", "prose", "code", "table"]


class UnreadableError(Exception):
    """A file whose text cannot be read; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document's text that has one kind.

    Attributes:
        kind: what it is.
        start: offset of its first character in the document's text.
        end: offset after its last character.
        level: of a heading, 1 for the outermost.
        header_end: of a table: offset after the rows that name its columns.
        title: of a heading, without marks.
    """

    kind: Kind
    start: int
    end: int
    level: int = 0
    header_end: int = 0
    title: str = ""


class Positions:
    """Where characters of a document's text are in its file.

    Args:
        source: the file, decoded.
        encoding: of the file.
        marks: pairs of an offset in the text and the offset in the source that it comes from, in ascending order;
            between two marks both count alike.
        before: bytes before the decoded text, such as a byte-order mark.
    """

    def __init__(
        self, source: str, encoding: str = "utf-8", marks: Sequence[tuple[int, int]] = ((0, 0),), before: int = 0
    ) -> None:
        self._encoding, self._source = encoding, source
        lines = source.split("\n")
        self._line_starts = [0, *accumulate(len(line) + 1 for line in lines)]
        self._byte_starts = list(accumulate((len(f"{line}\n".encode(encoding)) for line in lines), initial=before))
        self._text_marks, self._source_marks = [mark[0] for mark in marks], [mark[1] for mark in marks]

    def lines(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last line of a span of the text, counted from 1."""
        return self._line(self._offset(start)), self._line(self._offset(max(start, end - 1)))

    def bytes(self, start: int, end: int) -> tuple[int, int]:
        """The first byte of a span of the text, and the byte after its last."""
        return self._byte(self._offset(start)), self._byte(self._offset(max(start, end - 1)) + (end > start))

    def _offset(self, offset: int) -> int:
        """In the source, of an offset in the text."""
        mark = max(0, bisect_right(self._text_marks, offset) - 1)
        return min(self._source_marks[mark] + offset - self._text_marks[mark], len(self._source))

    def _line(self, offset: int) -> int:
        return bisect_right(self._line_starts, offset)

    def _byte(self, offset: int) -> int:
        line = self._line(offset) - 1
        return self._byte_starts[line] + len(self._source[self._line_starts[line] : offset].encode(self._encoding))


@dataclass(frozen=True, slots=True)
class Document:
    """A document as read.

    Attributes:
        text: what is searched.
        blocks: of the text, in order, without gaps that hold words.
        positions: of the text in the file.
        pages: the offset in the text at which each page starts; empty if the format has no pages.
        left_out: characters in the file that are not the document's text: navigation, scripts, footers.
    """

    text: str
    blocks: tuple[Block, ...]
    positions: Positions
    pages: tuple[int, ...] = ()
    left_out: int = 0

    def page(self, offset: int) -> int | None:
        """The page of a character, counted from 1; None without pages."""
        return bisect_right(self.pages, offset) if self.pages else None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file's text.

    Attributes:
        text: its characters.
        encoding: of the file.
        before: bytes of the byte-order mark.
    """

    text: str
    encoding: str
    before: int

    def document(self, blocks: Sequence[Block]) -> Document:
        """The document whose text is the file itself."""
        return Document(self.text, tuple(blocks), Positions(self.text, self.encoding, before=self.before))


_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def decoded(data: bytes, declared: str | None = None) -> Decoded:
    """A file's text: by its byte-order mark, else in the declared encoding, else in UTF-8.

    Args:
        data: the file.
        declared: an encoding that the file names.

    Raises:
        UnreadableError: it is not text of that encoding.
    """
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark) or declared or "utf-8"
    if not mark and b"\0" in data[:8192]:
        raise UnreadableError("it holds binary data")
    try:
        return Decoded(data[len(mark) :].decode(encoding), encoding, len(mark))
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"byte {len(mark) + error.start + 1:,} is not {encoding.upper()}; save it as UTF-8"
        ) from None
    except LookupError:
        raise UnreadableError(f"its encoding {encoding} is not known; save it as UTF-8") from None
