"""Which groups of people a row names, and whether it praises or blames: counts by word lists."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tunesmith.checks.record import Record
from tunesmith.config.yaml_text import read_yaml
from tunesmith.errors import UserError

TERMS = Path(__file__).parent / "group_terms.yaml"
"""The word lists, with their sources."""

MOST = 64
"""Groups of all dimensions: one bit each of a row's column."""

POSITIVE, NEGATIVE = 1, 2
"""Bits of the column `sentiment`."""


@dataclass(frozen=True)
class Lexicon:
    """Word lists.

    Attributes:
        groups: (dimension, group), in the order of their bits.
        terms: bits by term, in lower case; a term may have several words.
        sentiment: bits by word.
    """

    groups: tuple[tuple[str, str], ...]
    terms: Mapping[str, int]
    sentiment: Mapping[str, int]

    @cached_property
    def words(self) -> dict[bytes, int]:
        """Bits by term of one word."""
        return {term.encode(): bit for term, bit in self.terms.items() if _is_word(term)}

    @cached_property
    def phrases(self) -> dict[bytes, list[tuple[str, int]]]:
        """Terms of several words, by the longest of them."""
        found: dict[bytes, list[tuple[str, int]]] = {}
        for term, bit in self.terms.items():
            if not _is_word(term):
                key = max(term.replace("-", " ").split(), key=len).encode()
                found.setdefault(key, []).append((term, bit))
        return found

    @cached_property
    def rated(self) -> dict[bytes, int]:
        """Bits of praise and blame by word."""
        return {word.encode(): bit for word, bit in self.sentiment.items()}

    @cached_property
    def _known(self) -> frozenset[bytes]:
        return frozenset({*self.words, *self.phrases, *self.rated})

    def bits(self, record: Record) -> tuple[int, int]:
        """The groups that a row names, and its sentiment, as bits.

        Args:
            record: of any format.
        """
        found = sentiment = 0
        for word in self._known & record.words:
            found |= self.words.get(word, 0)
            sentiment |= self.rated.get(word, 0)
            if word in self.phrases:
                texts = [text.lower() for text in record.texts]
                found |= _union(bit for term, bit in self.phrases[word] if any(term in text for text in texts))
        return found, sentiment


def read_lexicon(paths: Iterable[str | Path] = ()) -> Lexicon:
    """Tunesmith's word lists, and those of the user.

    Args:
        paths: YAML files in the form of `group_terms.yaml`: `groups: {dimension: {group: [term, ...]}}` and
            `sentiment: {positive: [...], negative: [...]}`, either may be missing. They add to the built-in lists.

    Returns:
        The lists.

    Raises:
        UserError: a file is in another form, or there are too many groups.
    """
    bits: dict[tuple[str, str], int] = {}
    terms: dict[str, int] = {}
    sentiment: dict[str, int] = {}
    for path in (TERMS, *paths):
        groups, rated = _read(Path(path))
        for dimension, names in groups.items():
            for name, listed in names.items():
                bit = bits.setdefault((dimension, name), 1 << len(bits))
                for term in listed:
                    terms[term.lower()] = terms.get(term.lower(), 0) | bit
        for name, listed in rated.items():
            sentiment |= {word.lower(): {"positive": POSITIVE, "negative": NEGATIVE}[name] for word in listed}
    if len(bits) > MOST:
        raise UserError(f"{len(bits)} groups are named, but {MOST} are the most. Merge some of them.")
    return Lexicon(tuple(bits), terms, sentiment)


def _read(path: Path) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """The lists of a file; those of ours, which take a sixth of a second to parse, once a process."""
    return _read_ours() if path == TERMS else _read_file(path)


@cache
def _read_ours() -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    return _read_file(TERMS)


def _read_file(path: Path) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    values = read_yaml(path)
    known = isinstance(values, dict) and set(values) <= {"groups", "sentiment"}
    groups = values.get("groups") or {} if known else None
    rated = values.get("sentiment") or {} if known else None
    if not _are_lists_of_lists(groups) or not _are_lists(rated) or set(rated or ()) - {"positive", "negative"}:
        raise UserError(
            f"{path} is not a list of groups. Write it as groups: {{dimension: {{group: [term, …]}}}} and, if you "
            "like, sentiment: {positive: [word, …], negative: [word, …]}."
        )
    return groups or {}, rated or {}


def _are_lists_of_lists(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(key, str) and _are_lists(each) for key, each in values.items())


def _are_lists(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(key, str) and isinstance(each, list) and all(isinstance(term, str) and term.strip() for term in each)
        for key, each in values.items()
    )


def _is_word(term: str) -> bool:
    """Whether `Record.words` can have it."""
    return all(character.isalnum() for character in term)


def _union(bits: Iterable[int]) -> int:
    found = 0
    for bit in bits:
        found |= bit
    return found
