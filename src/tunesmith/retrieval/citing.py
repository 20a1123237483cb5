"""From an answer with numbers in brackets to claims, each with the sentences that support it, if there are any.

A sentence supports a claim if it holds enough of the claim's words. Words count by their rarity in the index, so that
common ones hardly matter.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.retrieval.full_text import words_of
from tunesmith.retrieval.search import Hit
from tunesmith.retrieval.sentences import sentence_spans

SUPPORT = 0.5
"""The least share of a claim's words, by rarity, that a sentence which supports it holds."""

Rarity = Callable[[str], float]
"""How much a word counts."""

_STATEMENT = re.compile(r"([^\[\]]*)((?: ?\[\d+\])*)")
_NUMBER = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence that a claim cites.

    Attributes:
        number: of the chunk in the prompt, from 1.
        file: that it is in.
        lines: its first and last line, from 1; in a PDF's extracted text.
        quote: the sentence of the chunk that holds most of the claim's words.
        page: of a PDF.
        overlap: the share of the claim's words in it, by rarity.
    """

    number: int
    file: str
    lines: tuple[int, int]
    quote: str
    page: int | None
    overlap: float

    @property
    def supports(self) -> bool:
        """Whether it holds enough of the claim's words."""
        return self.overlap >= SUPPORT

    def described(self) -> dict[str, Any]:
        """As JSON."""
        values = {name: getattr(self, name) for name in ("file", "lines", "quote", "number", "overlap", "supports")}
        return values | ({} if self.page is None else {"page": self.page})


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer.

    Attributes:
        text: without citations.
        citations: that follow it, in order.
    """

    text: str
    citations: tuple[Citation, ...]

    @property
    def supported(self) -> bool:
        """Whether one of its citations supports it."""
        return any(citation.supports for citation in self.citations)

    def described(self) -> dict[str, Any]:
        """As JSON: `text`, `cited` (numbers) and `supported`."""
        numbers = [citation.number for citation in self.citations]
        return {"text": self.text, "cited": numbers, "supported": self.supported}


def claims_of(answer: str, hits: Sequence[Hit], rarity: Rarity) -> list[Claim]:
    """The claims of an answer, with what they cite.

    Args:
        answer: with numbers of chunks in brackets after its statements. A number that no chunk has cites nothing.
        hits: the prompt's chunks.
        rarity: of a word.

    Returns:
        A claim for each sentence; the citations after a statement belong to each of its sentences.
    """
    claims = []
    for text, numbers in _statements(answer):
        cited = [(number, hits[number - 1]) for number in numbers if 1 <= number <= len(hits)]
        for start, end in sentence_spans(text):
            claim = text[start:end]
            if words_of(claim):
                claims.append(Claim(claim, tuple(_citation(claim, *each, rarity) for each in cited)))
    return claims


def _statements(answer: str) -> Iterator[tuple[str, list[int]]]:
    """The text before each run of citations, and its numbers without repetitions."""
    for match in _STATEMENT.finditer(answer):
        if match.group().strip():
            yield match[1], list(dict.fromkeys(int(number) for number in _NUMBER.findall(match[2])))


def _citation(claim: str, number: int, hit: Hit, rarity: Rarity) -> Citation:
    """The sentence of the chunk that holds most of the claim's words; the first of equal ones."""
    weights = {word: rarity(word) for word in set(words_of(claim))}
    overlaps = [_overlap(weights, hit.text[sentence.start : sentence.end]) for sentence in hit.sentences]
    best = max(range(len(overlaps)), key=overlaps.__getitem__)
    chosen = hit.sentences[best]
    quote = hit.text[chosen.start : chosen.end]
    return Citation(number, hit.file, (chosen.first, chosen.last), quote, hit.page, round(overlaps[best], 4))


def _overlap(weights: dict[str, float], sentence: str) -> float:
    total = sum(weights.values())
    found = set(words_of(sentence))
    return sum(weight for word, weight in weights.items() if word in found) / total if total else 0.0
