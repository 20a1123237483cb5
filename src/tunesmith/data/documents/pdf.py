"""PDF: the text of its pages, under the headings of its outline, by pypdf (`tunesmith[pdf]`)."""

import logging
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import accumulate
from typing import Any

from tunesmith.data.documents.document import Block, Document, Positions, UnreadableError

_PARAGRAPH = re.compile(r"[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*")


def read_pdf(data: bytes) -> Document:
    """A PDF file.

    Args:
        data: the file.

    Returns:
        The extracted text. Lines and bytes count in this text, not in the file.

    Raises:
        UnreadableError: it is damaged or encrypted, it holds no text, or pypdf is not installed.
    """
    try:
        import pypdf
    except ImportError:
        raise UnreadableError("reading PDF needs pypdf: pip install 'tunesmith[pdf]'") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it repairs is not the user's concern
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        pages = [f"{page.extract_text().strip()}\n\n" for page in reader.pages]
        titles = dict(_titles(reader, reader.outline, 1))
    except pypdf.errors.FileNotDecryptedError:
        raise UnreadableError("it is encrypted; save it without a password") from None
    except Exception as error:  # damaged files fail in every way
        raise UnreadableError(f"it is damaged: {type(error).__name__}: {str(error).splitlines()[0][:80]}") from None
    text = "".join(pages)
    if not text.strip():
        raise UnreadableError(f"its {len(pages):,} pages hold no text; recognize it first (OCR)")
    starts = tuple(accumulate((len(page) for page in pages[:-1]), initial=0))
    return Document(text, tuple(_blocks(text, starts, titles)), Positions(text), starts)


def _titles(reader: Any, outline: list[Any], level: int) -> Iterator[tuple[tuple[int, str], int]]:
    """The outline: page and title → level."""
    for entry in outline:
        if isinstance(entry, list):
            yield from _titles(reader, entry, level + 1)
        elif entry.title:
            yield (reader.get_destination_page_number(entry), " ".join(entry.title.split())), level


def _blocks(text: str, starts: tuple[int, ...], titles: Mapping[tuple[int, str], int]) -> Iterator[Block]:
    """Paragraphs; a line that is a title of the outline, on its page, is a heading."""
    ends = (*starts[1:], len(text))
    for page, (first, last) in enumerate(zip(starts, ends, strict=True)):
        for paragraph in _PARAGRAPH.finditer(text, first, last):
            start = position = paragraph.start()
            for line in paragraph.group().split("\n"):
                after = position + len(line)
                level = titles.get((page, " ".join(line.split())))
                if level is not None:
                    yield from [Block("prose", start, position - 1)] if position > start else []
                    yield Block("heading", position, after, level, title=" ".join(line.split()))
                    start = after + 1
                position = after + 1
            if start < paragraph.end():
                yield Block("prose", start, paragraph.end())
