"""Office files: paragraphs, headings and tables of Word, PowerPoint and Excel files (`tunesmith[office]`)."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from tunesmith.data.documents.document import Block, Document, Positions, UnreadableError
from tunesmith.errors import UserError

LARGEST_UNPACKED = 400_000_000
"""Bytes. These files are ZIP archives, and a small one can unpack to more than the memory."""

LARGEST_XML = 100_000_000
"""Bytes of XML in a Word or PowerPoint file, whose trees take ten times as much memory."""

_HEADING = "Heading "
"""What the names of Word's styles of headings begin with."""


class _Text:
    """Collects a document's text and its blocks."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._pages: list[int] = []
        self._size = 0

    def page(self) -> None:
        """Begin a page."""
        self._pages.append(self._size)

    def heading(self, text: str, level: int) -> None:
        title = " ".join(text.split())
        if title:
            start = self._add(f"{title}\n\n")
            self._blocks.append(Block("heading", start, start + len(title), level, title=title))

    def prose(self, text: str) -> None:
        if text.strip():
            start = self._add(f"{text.strip()}\n\n")
            self._blocks.append(Block("prose", start, self._size - 2))

    def table(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add a table, whose first row names its columns."""
        lines = [" | ".join(" ".join(str("" if cell is None else cell).split()) for cell in row) for row in rows]
        lines = [line for line in lines if line.strip(" |")]
        if lines:
            start = self._add("\n".join(lines) + "\n\n")
            header_end = start + len(lines[0]) + 1 if len(lines) > 1 else 0
            self._blocks.append(Block("table", start, self._size - 2, header_end=header_end))

    def _add(self, text: str) -> int:
        start = self._size
        self._parts.append(text)
        self._size += len(text)
        return start

    def document(self) -> Document:
        text = "".join(self._parts)
        return Document(text, tuple(self._blocks), Positions(text), tuple(self._pages))


def read_word(data: bytes) -> Document:
    """A Word file (.docx).

    Args:
        data: the file.

    Returns:
        Its headings, paragraphs and tables in order. Lines and bytes count in this text, not in the file.

    Raises:
        UnreadableError: it is damaged, encrypted or too large unpacked, or python-docx is not installed.
    """
    return _read(data, _word, LARGEST_XML)


def read_slides(data: bytes) -> Document:
    """A PowerPoint file (.pptx).

    Args:
        data: the file.

    Returns:
        Each slide is a page with its title as heading, its texts, tables and notes. Lines and bytes count in this text.

    Raises:
        UnreadableError: as `read_word`, with python-pptx.
    """
    return _read(data, _slides, LARGEST_XML)


def read_workbook(data: bytes) -> Document:
    """An Excel file (.xlsx).

    Args:
        data: the file.

    Returns:
        Each sheet is a heading and a table, whose first row names the columns; of formulas, the values that were saved.
        Lines and bytes count in this text.

    Raises:
        UnreadableError: as `read_word`, with openpyxl.
    """
    return _read(data, _workbook)


def _read(data: bytes, add: Callable[[bytes, _Text], None], most_xml: int = LARGEST_UNPACKED) -> Document:
    text = _Text()
    with reading_archive(data, most_xml):
        add(data, text)
    return text.document()


@contextmanager
def reading_archive(data: bytes, most_xml: int = LARGEST_UNPACKED) -> Iterator[BytesIO]:
    """An office file, once it is known that it does not unpack to more than the memory.

    Args:
        data: the file.
        most_xml: bytes of XML that are read.

    Yields:
        The file.

    Raises:
        UnreadableError: it is damaged, encrypted or too large, or the library that reads it is not installed.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        xml = sum(size for name, size in sizes.items() if name.lower().endswith((".xml", ".rels", ".vml")))
        for size, most in ((sum(sizes.values()), LARGEST_UNPACKED), (xml, most_xml)):
            if size > most:
                raise UnreadableError(
                    f"it unpacks to {size / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} are read; split it"
                )
        yield BytesIO(data)
    except (UnreadableError, UserError):
        raise
    except ImportError as error:
        raise UnreadableError(f"reading it needs {error.name}: pip install 'tunesmith[office]'") from None
    except zipfile.BadZipFile:
        raise UnreadableError("it is damaged or encrypted; save it again without a password") from None
    except Exception as error:  # damaged files fail in every way
        reason = (str(error).splitlines() or [""])[0][:80]
        raise UnreadableError(f"it is damaged: {type(error).__name__}: {reason}") from None


def _word(data: bytes, text: _Text) -> None:
    import docx
    from docx.table import Table

    for part in docx.Document(BytesIO(data)).iter_inner_content():
        style = "" if isinstance(part, Table) or part.style is None else part.style.name or ""
        if isinstance(part, Table):
            text.table([cell.text for cell in row.cells] for row in part.rows)
        elif style == "Title" or style.startswith(_HEADING):
            level = style.removeprefix(_HEADING)
            text.heading(part.text, int(level) if level.isdecimal() else 1)
        else:
            text.prose(part.text)


def _slides(data: bytes, text: _Text) -> None:
    import pptx

    for slide in pptx.Presentation(BytesIO(data)).slides:
        text.page()
        title = slide.shapes.title
        if title is not None:
            text.heading(title.text_frame.text, 1)
        for shape in slide.shapes:
            if shape.has_table:
                text.table([cell.text for cell in row.cells] for row in shape.table.rows)
            elif shape.has_text_frame and (title is None or shape.shape_id != title.shape_id):
                text.prose(shape.text_frame.text)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            text.prose(slide.notes_slide.notes_text_frame.text)


def _workbook(data: bytes, text: _Text) -> None:
    import openpyxl

    book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True)
    for sheet in book.worksheets:
        text.heading(sheet.title, 1)
        text.table(sheet.iter_rows(values_only=True))
