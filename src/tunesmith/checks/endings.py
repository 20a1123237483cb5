"""Answers that end in the middle of a sentence, judged by how the set's answers usually end."""

import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record
from tunesmith.checks.result import Mark
from tunesmith.checks.rows_again import read_again
from tunesmith.checks.traits import Trait

if TYPE_CHECKING:
    from tunesmith.checks.table import Table

NOT_PROSE, ENDED, OPEN, NUMBER = 0, 1, 2, 3
"""How an answer ends: not as prose does (a label, a list, code), as a sentence, in the middle of one, with a number."""

USUALLY = 0.8
"""The share of answers that end as a sentence or with a number from which those that end in the middle of a sentence
are cut. In a set with fewer, people do not write the last period. Answers that are no prose are not counted."""

SAME = 0.7
"""The share of the answers whose last line begins with the same word from which the others are cut."""

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
        record: of any format; a raw text has no answer. One that calls a tool ends with the call.
    """
    if not record.prompt or not record.answer or record.calls:
        return NOT_PROSE
    text = record.answer[-2000:].rstrip()
    if text.endswith("```") or record.answer.count("```") % 2:
        return NOT_PROSE
    bare = text.rstrip(_CLOSERS)
    if len(bare) < len(text) and not bare.endswith(_STOPS):
        return NOT_PROSE  # a title in quotes, a remark in brackets: who is cut off seldom closes them
    if not bare or not bare[-1].isalpha():
        return _ending_of_sign(bare)
    return _ending_of_word(text, bare, whole=len(record.answer) <= 2000)


def _ending_of_sign(bare: str) -> int:
    """How a text ends whose last character is no letter."""
    if bare.endswith(_STOPS):
        return ENDED
    if bare.endswith((",", "，", "、")):
        return OPEN
    return NUMBER if bare[-1:].isdigit() and len(bare.split()) >= FEW_WORDS else NOT_PROSE


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


def closing(record: Record) -> int:
    """A hash of the word that an answer's last line begins with; 0 if it has only one line.

    Args:
        record: of any format; a raw text has no answer.
    """
    word = _last_word(record) if record.prompt else ""
    return zlib.crc32(word.encode("utf-8", "replace")) or 1 if word else 0


def _last_word(record: Record) -> str:
    lines = record.answer.rstrip().rsplit("\n", 1)
    return lines[1].split(maxsplit=1)[0] if len(lines) > 1 and lines[1].strip() else ""


def _without_usual_closing(table: "Table") -> Iterator[Mark]:
    """Rows whose last line is another than that of almost all, such as `#### 72`: they end before it."""
    has_answer = (table.column("prompt_length") > 0) & (table.column("answer_length") > 0)
    closings = table.column("closing")
    values, counts = np.unique(closings[has_answer], return_counts=True)
    if not len(values) or counts.max() < SAME * has_answer.sum() or not values[counts.argmax()]:
        return
    usual = values[counts.argmax()]
    source = table.source(int(np.flatnonzero(closings == usual)[0]))
    read = read_again(table.files, [source]).get(source)
    word = _last_word(read) if isinstance(read, Record) else ""
    share = int(100 * counts.max() / has_answer.sum())
    for index in np.flatnonzero(has_answer & (closings != usual)):
        detail = f"the last line does not begin with “{word}”, as that of {share}% of the answers does"
        yield Mark(table.source(int(index)), detail)


def _find(record: Record) -> str | None:
    if ending(record) != OPEN:
        return None
    end = record.answer.rstrip()[-40:].replace("\n", " ")
    return f"the answer ends with “{end[end.find(' ') + 1 :]}”"


def _usually_ends(table: "Table") -> bool:
    counts = np.bincount(table.column("ending"), minlength=4)
    return bool(counts[ENDED] + counts[NUMBER] >= USUALLY * (counts[ENDED] + counts[OPEN] + counts[NUMBER]))


TRUNCATED_ANSWERS = RowCheck(
    name="truncated_answers",
    title="Answers cut in mid-sentence",
    severity="warning",
    advice="Complete them or remove the rows: a model learns to stop where they stop.",
    find=_find,
    stands=_usually_ends,
    more=_without_usual_closing,
    traits=Trait.OPEN,
)
