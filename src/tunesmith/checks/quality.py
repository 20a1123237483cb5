"""A quality score for each row, from figures that need no model: which rows to look at, or to keep, first."""

import math
import re
from dataclasses import dataclass

from tunesmith.checks.encoding import encoding_problem
from tunesmith.checks.endings import OPEN, ending
from tunesmith.checks.markup import CONTROL_TOKENS, HTML
from tunesmith.checks.record import Record

ENOUGH_WORDS = 200
"""Words from which an answer is no better for being longer."""

PROMPT_WORDS = 3
"""Words of the prompt that an answer takes up to be about it."""

READ = 8_000
"""Characters of a text that are looked at."""

FAULT = 0.5
"""What each fault multiplies the score by."""

_REFUSAL = re.compile(
    r"\b(?:as an ai(?: language)? model|i(?:'m| am) (?:just )?an ai|i(?:'m| am) (?:sorry|afraid)[,\s]+(?:but )?i "
    r"(?:cannot|can't|am (?:not able|unable))|i (?:cannot|can't) (?:assist|help) with)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Quality:
    """A row's quality.

    Attributes:
        score: 0 to 1: the mean of the four features, halved for each fault.
        length: log(1 + words) / log(1 + 200) of the answer, at most 1.
        variety: how little the answer repeats itself: different runs of three words, by all of them.
        prose: the share of the answer's characters that are letters or spaces, by 0.8, at most 1 (Rae et al. 2021,
            section A1, ask that 80 % of the words have a letter).
        relevance: words of four letters or more that the answer shares with the prompt, by 3, at most 1. 1 for a raw
            text, and for an answer of fewer than eight words.
        faults: of `cut`, `broken characters`, `markup` and `refusal`.
    """

    score: float
    length: float
    variety: float
    prose: float
    relevance: float
    faults: tuple[str, ...] = ()


def quality(record: Record) -> Quality:
    """How good a row is to learn from, as far as its form shows. It says nothing of whether the answer is right.

    Args:
        record: of any format; of a labeled text, the text is rated.

    Returns:
        The score, with what it is made of.
    """
    text = (record.learned or record.prompt)[:READ]
    words = text.count(" ") + 1 if text.strip() else 0
    if not words:
        return Quality(0.0, 0.0, 0.0, 0.0, 0.0)
    features = (_length(words), _variety(text), _prose(text), _relevance(record, text, words))
    faults = tuple(_faults(record, text))
    return Quality(sum(features) / len(features) * FAULT ** len(faults), *features, faults)


def _length(words: int) -> float:
    return min(1.0, math.log1p(words) / math.log1p(ENOUGH_WORDS))


def _variety(text: str) -> float:
    words = text.lower().split()
    runs = [*zip(words, words[1:], words[2:], strict=False)]
    return len({*runs}) / len(runs) if runs else 1.0


def _prose(text: str) -> float:
    return min(1.0, sum(c.isalpha() or c.isspace() for c in text[:1000]) / len(text[:1000]) / 0.8)


def _relevance(record: Record, text: str, words: int) -> float:
    if not record.prompt or not record.answer or words < 8:
        return 1.0
    shared = {*_WORD.findall(record.prompt[-READ:].lower())} & {*_WORD.findall(text.lower())}
    return min(1.0, len(shared) / PROMPT_WORDS)


def _faults(record: Record, text: str) -> list[str]:
    found = {
        "cut": ending(record) == OPEN,
        "broken characters": encoding_problem(text) is not None,
        "markup": (HTML.find(record) or CONTROL_TOKENS.find(record)) is not None,
        "refusal": _REFUSAL.search(text[:300]) is not None,
    }
    return [name for name, has in found.items() if has]
