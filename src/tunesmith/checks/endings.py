"""Answers that end in the middle of a sentence, judged by how the set's answers usually end."""

import re
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record

if TYPE_CHECKING:
    from tunesmith.checks.table import Table

NOT_PROSE, ENDED, OPEN = 0, 1, 2
"""How an answer ends: not as prose does (a label, a list, code, a number), as a sentence, or in the middle of one."""

USUALLY = 0.8
"""The share of prose answers that end as a sentence from which the others are cut. In a set with fewer, people do not
write the last period."""

FEW_WORDS = 8
"""Answers with fewer words and no punctuation are labels, names or phrases."""

_CLOSERS = " \t\n\r\"'”’»›)]}*_`~」』）】〉》"
_STOPS = tuple(".!?…:;。！？｡．।॥؟۔։፧።၊။;․‼⁇⁈⁉")
_SENTENCE_END = re.compile(r"[.!?…。！？।؟۔](?=\s|$|[\"'”’»)\]])|[。！？।]")
_ITEM = re.compile(r"\s*(?:[-*•·–—+>|#]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)]\s|[ivxIVX]{1,4}[.)])\s*")
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u0f00-\u0fff]$")
"""Thai, Lao, Burmese, Khmer and Tibetan, which end sentences without a mark."""

_NOT_A_WORD = re.compile(r"(?:https?://|www\.)\S+$|\S*[\d/\\=<>{}|@#$%^&€£¥°]\S*$|\S+\.\w{1,5}$|^\W+$")
"""Last words of URLs, numbers, formulas, code and file names."""


def ending(record: Record) -> int:
    """How a row's answer ends: `NOT_PROSE`, `ENDED` or `OPEN`.

    Args:
        record: of any format; a raw text has no answer.
    """
    if not record.prompt or not record.answer:
        return NOT_PROSE
    text = record.answer[-2000:].rstrip()
    if text.endswith("```") or record.answer.count("```") % 2:
        return NOT_PROSE
    bare = text.rstrip(_CLOSERS)
    if len(bare) < len(text) and not bare.endswith(_STOPS):
        return NOT_PROSE  # a title in quotes, a remark in brackets: who is cut off seldom closes them
    if not bare or not bare[-1].isalpha():
        return ENDED if bare.endswith(_STOPS) else OPEN if bare.endswith((",", "，", "、")) else NOT_PROSE
    return _ending_of_word(text, bare, whole=len(record.answer) <= 2000)


def _ending_of_word(text: str, bare: str, whole: bool) -> int:
    """How a text ends whose last character is a letter."""
    if _NO_SPACES.search(bare) or _NOT_A_WORD.search(bare.split()[-1]) or text[0] in "{[<":
        return NOT_PROSE
    words = len(bare.split()) if not _is_ideographic(bare[-1]) else len(bare) // 2
    if words < FEW_WORDS and whole and not _SENTENCE_END.search(bare):
        return NOT_PROSE
    *earlier, last = [line for line in text.splitlines() if line.strip()]
    if _is_signature(earlier, last) or _is_result(earlier, last) or _as_other_lines(earlier, last):
        return NOT_PROSE
    return OPEN


def _as_other_lines(earlier: list[str], last: str) -> bool:
    """Whether the last line is an item, a verse or a line of code that ends as most of its kind do: without a mark."""
    if last.lstrip().startswith(("|", "#", "//", "import ", "return ")) or last.startswith(("    ", "\t")):
        return True
    is_item = bool(_ITEM.match(last))
    kin = [line for line in earlier if bool(_ITEM.match(line)) == is_item]
    if is_item and not kin:
        return len(last.split()) < FEW_WORDS
    return len(kin) >= (1 if is_item else 2) and sum(_is_open(line) for line in kin) > len(kin) / 2


def _is_open(line: str) -> bool:
    return not line.rstrip(_CLOSERS).endswith(_STOPS)


def _is_signature(earlier: list[str], last: str) -> bool:
    return bool(earlier) and earlier[-1].rstrip().endswith(",") and len(last.split()) <= 5


def _is_result(earlier: list[str], last: str) -> bool:
    """Whether the last line is a verdict: `The answer is: True`, or a word or two on a line of their own."""
    words = last.split()
    return (len(words) <= 3 and bool(earlier)) or any(word.endswith(":") for word in words[-4:-1])


def _is_ideographic(character: str) -> bool:
    return "\u3040" <= character <= "\u9fff"


def _find(record: Record) -> str | None:
    if ending(record) != OPEN:
        return None
    end = record.answer.rstrip()[-40:].replace("\n", " ")
    return f"the answer ends with “{end[end.find(' ') + 1 :]}”"


def _usually_ends(table: "Table") -> bool:
    counts = np.bincount(table.column("ending"), minlength=3)
    return bool(counts[ENDED] >= USUALLY * (counts[ENDED] + counts[OPEN]))


TRUNCATED_ANSWERS = RowCheck(
    name="truncated_answers",
    title="Answers cut in mid-sentence",
    severity="warning",
    advice="Complete them or remove the rows: a model learns to stop where they stop.",
    find=_find,
    stands=_usually_ends,
)
