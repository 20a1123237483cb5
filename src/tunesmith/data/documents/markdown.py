"""Markdown: headings, paragraphs, items of lists, code and tables, by markdown-it."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tunesmith.data.documents.document import Block, Document, decoded

_FRONT_MATTER = re.compile(r"---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
"""YAML before the text, which CommonMark would read as a heading."""


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def read_markdown(data: bytes) -> Document:
    """A Markdown file (CommonMark with tables).

    Args:
        data: the file.

    Returns:
        Its blocks; an item of a list is one.

    Raises:
        UnreadableError: it is not text.
    """
    file = decoded(data)
    front = _FRONT_MATTER.match(file.text)
    skipped = 0 if front is None else front.end()
    body = file.text[skipped:].replace("\r", " ")  # the parser would read it as the end of a line
    starts = list(accumulate((len(line) + 1 for line in body.split("\n")), initial=skipped))
    starts[-1] = len(file.text)
    blocks = [Block("prose", 0, skipped)] if skipped else []
    return file.document([*blocks, *_blocks(_parser().parse(body), starts)])


def _blocks(tokens: Sequence[Token], starts: Sequence[int]) -> Iterator[Block]:
    """Args:
    tokens: of the parser; a token's `map` are its lines.
    starts: offset of each line in the text.
    """
    for index, token in enumerate(tokens):
        if token.map is None or not _is_block(token):
            continue
        start, end = starts[token.map[0]], starts[min(token.map[1], len(starts) - 1)]
        match token.type:
            case "heading_open":
                yield Block("heading", start, end, int(token.tag[1]), title=_plain(tokens[index + 1]))
            case "fence" | "code_block":
                yield Block("code", start, end)
            case "table_open":
                yield Block("table", start, end, header_end=starts[token.map[0] + 2])
            case _:
                yield Block("prose", start, end)


def _is_block(token: Token) -> bool:
    """Whether a token is an outermost block; a list is not, but its items are."""
    if token.level == 0:
        return token.nesting >= 0 and token.type not in ("bullet_list_open", "ordered_list_open", "inline")
    return token.level == 1 and token.type == "list_item_open"


def _plain(inline: Token) -> str:
    """The text of a heading without marks."""
    parts = (child.content for child in inline.children or () if child.type in ("text", "code_inline", "softbreak"))
    return " ".join("".join(parts).split())
