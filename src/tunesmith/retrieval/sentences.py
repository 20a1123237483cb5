"""Where sentences begin and end."""

import re

_END = re.compile(r"(?:[.!?…]+[\"')\]*_`”’»]*(?=\s)|[。！？])\s*|\n\s*\n\s*|\n(?=\s*(?:[-*+•]|\d{1,3}[.)])\s)")
"""A mark that ends a sentence, a blank line, or the line before an item of a list."""

_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|e\.g|i\.e|etc|cf|vs|al|approx|ca|Dr|Mr|Mrs|Ms|Prof|Sr|Jr|St|Fig|No|Nr|Vol|pp?|Sec|Eq|z\.B|d\.h|bzw|usw)\.$"
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of a text.

    Args:
        text: prose.

    Returns:
        Start and end of each, without the white space around it; together they hold every other character.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if not _ends(text, match):
            continue
        _append(spans, text, start, match.end())
        start = match.end()
    _append(spans, text, start, len(text))
    return spans


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends at a mark: not after an abbreviation, nor before a small letter."""
    mark = match.group()
    if "\n" in mark and not mark.strip():
        return True
    following = text[match.end() : match.end() + 1]
    if "\n\n" not in mark and following.islower():
        return False
    stop = match.start() + 1
    return not (mark.startswith(".") and _ABBREVIATION.search(text[max(0, stop - 12) : stop]))


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    part = text[start:end]
    if part.strip():
        spans.append((start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())))
