"""General text to replay in the demo: paragraphs of Python's language reference, which comes with every Python."""

import json
import re
from pathlib import Path
from pydoc_data.topics import topics

from tunesmith.run import atomic_write

SHORTEST, LONGEST = 20, 100  # words
_GRAMMAR = re.compile(r"::=|\.\.\. ?code|>>>|={3,}|\*{3,}|-{3,}")


def paragraphs() -> list[str]:
    """Each plain paragraph once, on one line, in the order of the topics. Code, grammar, lists and headings are not
    among them."""
    found: dict[str, None] = {}
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            if _is_prose(paragraph):
                found[" ".join(paragraph.split())] = None
    return list(found)


def _is_prose(paragraph: str) -> bool:
    """Whether it starts at the margin as a sentence does, ends as one, and is neither short nor long."""
    text = paragraph.rstrip()
    is_sentence = text[:1].isupper() and text.endswith(".")
    is_flat = not any(line.startswith(" ") for line in text.splitlines())
    return is_sentence and is_flat and SHORTEST <= len(text.split()) <= LONGEST and not _GRAMMAR.search(text)


def write_prose(directory: Path) -> Path:
    """Write `prose.jsonl` into `directory`, a paragraph a row.

    Args:
        directory: created if missing.

    Returns:
        The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "prose.jsonl"
    with atomic_write(file) as out:
        out.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in paragraphs())
    return file
