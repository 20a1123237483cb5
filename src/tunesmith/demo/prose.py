"""General text to replay in the demo, which comes with every Python: its language reference, and docstrings of its
standard library.

The demo tests general text with the docstrings of modules. Nothing here shares eight words in a row with one of them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

from tunesmith.demo.standard_library import documented
from tunesmith.run import atomic_write

SHORTEST, LONGEST = 20, 100  # words
SHARED = 8  # words in a row
_NOT_PROSE = re.compile(r"::=|>>>|={3,}|\*{3,}|-{3,}")


def prose() -> list[str]:
    """Each text once: paragraphs of the reference on one line, then docstrings of classes, functions and methods."""
    things = list(documented())
    tested = set(_runs(thing.docstring for thing in things if thing.kind == "module"))
    texts = [*_paragraphs(topics.values()), *(thing.docstring for thing in things if thing.kind != "module")]
    return [
        text
        for text in dict.fromkeys(texts)
        if SHORTEST <= len(text.split()) <= LONGEST and tested.isdisjoint(_runs([text]))
    ]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """The paragraphs that start at the margin as a sentence does and end as one. Not code, grammar, lists, headings."""
    found = []
    for paragraph in (paragraph.rstrip() for text in texts for paragraph in text.split("\n\n")):
        is_sentence = paragraph[:1].isupper() and paragraph.endswith(".")
        is_flat = not any(line.startswith(" ") for line in paragraph.splitlines())
        if is_sentence and is_flat and not _NOT_PROSE.search(paragraph):
            found.append(" ".join(paragraph.split()))
    return found


def _runs(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Each SHARED words in a row of each text."""
    lists = [text.split() for text in texts]
    return [tuple(words[at : at + SHARED]) for words in lists for at in range(len(words) - SHARED + 1)]


def write_prose(directory: Path) -> Path:
    """Write `prose.jsonl` into `directory`, a text a row.

    Args:
        directory: created if missing.

    Returns:
        The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "prose.jsonl"
    with atomic_write(file) as out:
        out.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in prose())
    return file
