"""Plain text, reStructuredText and source code: paragraphs, underlined headings, top-level parts of a program."""

import re
from collections.abc import Iterator
from itertools import pairwise

from tunesmith.data.documents.document import Block, Document, decoded

_PARAGRAPH = re.compile(r"[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*")
"""Lines up to the next blank one."""

_UNDERLINE = re.compile(r"([=\-~^\"*#+'`:.])\1{2,}[ \t]*$")
"""A line that makes the one before it a heading (docutils: any of these characters, as long as the title)."""

_PART = re.compile(r"\n[ \t]*\n(?=[^\s#/*)}\]])")
"""A blank line before a line that is not indented: where functions and classes part."""


def read_text(data: bytes) -> Document:
    """A text file.

    Args:
        data: the file.

    Returns:
        Paragraphs, under the headings that are underlined as in reStructuredText.

    Raises:
        UnreadableError: it is not text.
    """
    file = decoded(data)
    levels: dict[str, int] = {}
    return file.document([block for match in _PARAGRAPH.finditer(file.text) for block in _blocks(match, levels)])


def _blocks(paragraph: re.Match[str], levels: dict[str, int]) -> Iterator[Block]:
    """The heading at the beginning of a paragraph, if there is one, and the rest."""
    start, end = paragraph.span()
    lines = paragraph.group().split("\n")
    over = len(lines) > 2 and bool(_UNDERLINE.match(lines[0])) and lines[0].strip() == lines[2].strip()
    title, under = (lines[1], lines[2]) if over else (lines[0], lines[1] if len(lines) > 1 else "")
    underline = _UNDERLINE.match(under)
    if underline is None or len(under.strip()) < len(title.strip()) or _UNDERLINE.match(title):
        yield Block("prose", start, end)
        return
    level = levels.setdefault(underline[1] * (1 + over), len(levels) + 1)
    after = start + sum(len(line) + 1 for line in lines[: 3 if over else 2]) - 1
    yield Block("heading", start, min(after, end), level, title=title.strip())
    if after < end:
        yield Block("prose", after + 1, end)


def read_code(data: bytes) -> Document:
    """A source file.

    Args:
        data: the file.

    Returns:
        Its parts: what follows a blank line and is not indented begins a new one.

    Raises:
        UnreadableError: it is not text.
    """
    file = decoded(data)
    borders = [0, *(match.end() for match in _PART.finditer(file.text)), len(file.text)]
    parts = pairwise(borders)
    return file.document([Block("code", start, end) for start, end in parts if file.text[start:end].strip()])
