"""From an answer with numbers in brackets to claims, each with the sentences that support it, if there are any.

A sentence supports a claim if it holds enough of the claim's words, or if a model says that the claim follows from it
(`retrieval.support`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.retrieval.full_text import words_of
from tunesmith.retrieval.search import Hit
from tunesmith.retrieval.sentences import sentence_spans
from tunesmith.retrieval.support import Support

SUPPORT = 0.5
"""The least support of a sentence that supports a claim."""

_STATEMENT = re.compile(r"([^\[\]]*)((?: ?\[\d+\])*)")
_NUMBER = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence that a claim cites.

    Attributes:
        number: of the chunk in the prompt, from 1.
        file: that it is in.
        lines: its first and last line, from 1; in a PDF's extracted text.
        quote: the sentence of the chunk that supports the claim best.
        page: of a PDF.
        support: how far it does, from 0 to 1: the share of the claim's words in it, by rarity, or the probability that
            the claim follows from it.
    """

    number: int
    file: str
    lines: tuple[int, int]
    quote: str
    page: int | None
    support: float

    @property
    def supports(self) -> bool:
        """Whether it supports the claim."""
        return self.support >= SUPPORT

    def described(self) -> dict[str, Any]:
        """As JSON."""
        values = {name: getattr(self, name) for name in ("file", "lines", "quote", "number", "support", "supports")}
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


def claims_of(answer: str, hits: Sequence[Hit], support: Support) -> list[Claim]:
    """The claims of an answer, with what they cite.

    Args:
        answer: with numbers of chunks in brackets after its statements. A number that no chunk has cites nothing.
        hits: the prompt's chunks.
        support: how it is measured.

    Returns:
        A claim for each sentence; the citations after a statement belong to each of its sentences.
    """
    claims = []
    for text, numbers in _statements(answer):
        cited = [(number, hits[number - 1]) for number in numbers if 1 <= number <= len(hits)]
        for start, end in sentence_spans(text):
            claim = text[start:end]
            if words_of(claim):
                claims.append(Claim(claim, tuple(_citation(claim, *each, support) for each in cited)))
    return claims


def _statements(answer: str) -> Iterator[tuple[str, list[int]]]:
    """The text before each run of citations, and its numbers without repetitions."""
    for match in _STATEMENT.finditer(answer):
        if match.group().strip():
            yield match[1], list(dict.fromkeys(int(number) for number in _NUMBER.findall(match[2])))


def best_support(claim: str, hits: Sequence[Hit], support: Support) -> float:
    """How far the chunks support a claim, cited or not.

    Args:
        claim: a sentence.
        hits: the prompt's chunks.
        support: how it is measured.

    Returns:
        The highest support of their sentences.
    """
    return max(support(claim, [sentence for hit in hits for sentence in _sentences(hit)]), default=0.0)


def _citation(claim: str, number: int, hit: Hit, support: Support) -> Citation:
    """The sentence of the chunk that supports the claim best; the first of equal ones."""
    sentences = _sentences(hit)
    found = support(claim, sentences)
    best = max(range(len(found)), key=found.__getitem__)
    chosen = hit.sentences[best]
    lines = chosen.first, chosen.last
    return Citation(number, hit.file, lines, sentences[best], hit.page, round(found[best], 4))


def _sentences(hit: Hit) -> list[str]:
    return [hit.text[sentence.start : sentence.end] for sentence in hit.sentences]
