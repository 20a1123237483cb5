"""HTML: headings, paragraphs, items, code and tables, without navigation, by Python's own tolerant parser.

It reports where each piece of text is in the file, which parsers that build a tree do not; citations need that.
"""

import re
from html import unescape
from html.parser import HTMLParser
from itertools import accumulate

from tunesmith.data.documents.document import Block, Document, Kind, Positions, decoded

_SKIPPED = frozenset(("aside", "button", "footer", "head", "nav", "noscript", "script", "style", "svg", "template"))
"""Elements whose text is not the page's."""

_INLINE = frozenset(
    "a abbr b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q s samp small span strike "
    "strong sub sup time tt u var wbr".split()
)
"""Elements inside a paragraph; every other tag ends the paragraph."""

_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_WORDS = re.compile(r"\s+|\S+")


def read_web_page(data: bytes) -> Document:
    """An HTML file.

    Args:
        data: the file.

    Returns:
        The text of its main part if it names one, else all text, without navigation, scripts, asides and footers. A row
        of a table is a line with ` | ` between its cells.

    Raises:
        UnreadableError: it is not text of the encoding that it names.
    """
    declared = _CHARSET.search(data[:4096])
    file = decoded(data, None if declared is None else declared[1].decode().lower())
    page = _Page(file.text)
    page.feed(file.text)
    page.close()
    page.finish()
    blocks = page.main_blocks or page.blocks
    left_out = page.left_out + sum(block.end - block.start for block in page.blocks if block not in set(blocks))
    positions = Positions(file.text, file.encoding, page.marks, file.before)
    return Document("".join(page.parts), tuple(blocks), positions, left_out=left_out)


class _Page(HTMLParser):
    """Collects the page's text, its blocks, and where each word is in the source."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self.marks: list[tuple[int, int]] = []
        self.blocks: list[Block] = []
        self.main_blocks: list[Block] = []
        self._line_starts = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
        self._size = self._start = self._first_part = 0
        self._skipped: list[str] = []
        self._main = self._pre = self._tables = self._level = 0
        self._space = self._row_has_data = False
        self._row_start = self._header_end = 0
        self.left_out = 0

    # What the parser finds

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        role = dict(attrs).get("role")
        if self._skipped or tag in _SKIPPED or role == "navigation":
            if not self._skipped or tag == self._skipped[0]:
                self._end_block()
                self._skipped.append(tag)
            return
        if tag in ("td", "th"):
            self._begin_cell(tag)
        elif tag == "br":
            self._add("\n", None)
        elif tag not in _INLINE:
            self._begin(tag, role)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.pop()
            return
        if tag == "tr" and self._tables:
            self._end_row()
        elif tag not in _INLINE and tag not in ("td", "th"):
            self._end(tag)

    def handle_data(self, data: str) -> None:
        self._text(data)

    def handle_entityref(self, name: str) -> None:
        self._text(unescape(f"&{name};"))

    def handle_charref(self, name: str) -> None:
        self._text(unescape(f"&#{name};"))

    def finish(self) -> None:
        """Close what the page left open."""
        self._tables = min(self._tables, 1)
        self._end("table" if self._tables else "p")

    # Blocks

    def _begin(self, tag: str, role: str | None) -> None:
        if self._tables:  # paragraphs and lists in a cell belong to its row
            self._tables += tag == "table"
            self._space = True
            return
        self._end_block()
        if tag == "main" or role == "main" or (tag == "article" and not self._main):
            self._main += 1
        elif tag == "pre":
            self._pre += 1
        elif tag == "table":
            self._tables, self._header_end, self._row_start = 1, 0, self._size
        elif re.fullmatch("h[1-6]", tag):
            self._level = int(tag[1])

    def _end(self, tag: str) -> None:
        if self._tables and tag != "table":
            self._space = True
        elif self._tables > 1:
            self._tables -= 1
        else:
            if self._tables:
                self._end_row()
            self._end_block("table" if self._tables else "code" if self._pre else "prose")
            self._tables = self._level = 0
            self._pre = max(0, self._pre - (tag == "pre"))

    def _end_block(self, kind: Kind | None = None) -> None:
        """Make a block of the text since the last one, if there is any."""
        text = "".join(self.parts[self._first_part :]).rstrip()
        start, end = self._start, self._start + len(text)
        if text.strip():
            if self._level:
                title = " ".join(text.removesuffix("¶").split())
                block = Block("heading", start, end, self._level, title=title)
            else:
                kind = kind or ("code" if self._pre else "prose")
                block = Block(kind, start, end, header_end=min(self._header_end, end) if kind == "table" else 0)
            self.blocks.append(block)
            if self._main:
                self.main_blocks.append(block)
            self._add("\n\n", None)
        self._start, self._first_part, self._space = self._size, len(self.parts), False

    def _begin_cell(self, tag: str) -> None:
        if not self._tables:
            self._end_block()
        elif self._tables == 1:
            self._row_has_data |= tag == "td"
            if self._size > self._row_start:
                self._add(" | ", None)
            self._space = False

    def _end_row(self) -> None:
        if self._tables == 1 and self._size > self._row_start:
            self._add("\n", None)
            if not self._row_has_data and self._header_end in (0, self._row_start):
                self._header_end = self._size
            self._row_start = self._size
        self._row_has_data = self._space = False

    # Text

    def _text(self, data: str) -> None:
        """Add text with the white space that it has in a browser."""
        if self._skipped:
            self.left_out += len(data)
            return
        line, column = self.getpos()
        offset = self._line_starts[line - 1] + column
        if self._pre:
            self._add(data, offset)
            return
        for match in _WORDS.finditer(data):
            if match.group().isspace():
                self._space = True
                continue
            if self._space and self._size > self._start and not self.parts[-1].endswith(("\n", " ")):
                self._add(" ", None)
            self._space = False
            self._add(match.group(), offset + match.start())

    def _add(self, text: str, offset: int | None) -> None:
        if offset is not None:
            self.marks.append((self._size, offset))
        self.parts.append(text)
        self._size += len(text)
