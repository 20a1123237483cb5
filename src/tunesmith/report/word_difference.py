"""Marks the words in which two texts differ, as HTML."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from markupsafe import Markup

MOST_PAIRS = 4_000_000
"""Words of one text times words of the other, from which on nothing is compared: it would take seconds."""

_WORD = re.compile(r"\s*(?:\w+|[^\w\s])\s*")
_BREAK = re.compile(r"(\s*\n\s*|\s+$)")


def marked_difference(expected: str, answer: str) -> tuple[Markup, Markup]:
    """Both texts, escaped, with their differences marked.

    Words and punctuation marks are compared, white space is not.

    Args:
        expected: the expected text.
        answer: the text that is compared with it.

    Returns:
        The expected text, with `<del>` around what the answer lacks; the answer, with `<ins>` around what the expected
        text lacks. Unmarked if they are too long to compare.
    """
    before, after = _WORD.findall(expected), _WORD.findall(answer)
    if len(before) * len(after) > MOST_PAIRS:
        return Markup.escape(expected), Markup.escape(answer)
    matcher = SequenceMatcher(None, _stripped(before), _stripped(after), autojunk=False)
    left, right = [], []
    for kind, i, j, k, n in matcher.get_opcodes():
        left.append(_marked("del", before[i:j], is_equal=kind == "equal"))
        right.append(_marked("ins", after[k:n], is_equal=kind == "equal"))
    return Markup().join(left), Markup().join(right)


def _stripped(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in words]


def _marked(tag: str, words: Sequence[str], *, is_equal: bool) -> Markup:
    """The words, with a tag around the text of each line if they are not equal."""
    text = "".join(words)
    if is_equal:
        return Markup.escape(text)
    pieces = [piece for piece in _BREAK.split(text) if piece]
    template = Markup(f"<{tag}>{{}}</{tag}>")
    return Markup().join(piece if piece.isspace() else template.format(piece) for piece in pieces)
