"""Concept coverage, CommonGen's measure (Lin et al. 2020, section 5.1): the given words that an answer uses.

Inflected forms count. Words are compared by their lemma (simplemma, which knows irregular forms) and by their stem
(Porter's, where the lemma is not known). English only.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Case, Metric
from tunesmith.metrics.text import words
from tunesmith.statistics.measured import Measured

AFTER_COLON = r".*:\s*(.+)"
"""Where a question lists its concepts: after its last colon."""


def coverage(answer: str, concepts: Sequence[str]) -> float:
    """The share of concepts that an answer uses, in any inflected form.

    Args:
        answer: the text to score.
        concepts: words, such as `run` and `dog`; one of several words is used if each of them is.

    Returns:
        From 0 to 1; 1 if there are no concepts.
    """
    used = {form for word in words(answer) for form in forms(word)}
    found = [all(forms(word) & used for word in words(concept)) for concept in concepts]
    return sum(found) / len(found) if found else 1.0


@lru_cache(100_000)
def forms(word: str) -> frozenset[str]:
    """What a word is recognized by.

    Args:
        word: in lower case.

    Returns:
        Its lemma and the stem of both, marked so that a stem never equals another word.
    """
    lemma = str(_simplemma().lemmatize(word, lang="en")).casefold()
    return frozenset({word, lemma, f"{_stemmer().stem(word)}-", f"{_stemmer().stem(lemma)}-"})


def concepts_of(prompt: str, pattern: str = AFTER_COLON) -> list[str]:
    """The concepts that a question lists.

    Args:
        prompt: such as "Write a sentence with: dog, run, park".
        pattern: whose first group is the list, separated by commas, semicolons or `#`, or else by spaces.

    Returns:
        The concepts; none if the pattern is not found.
    """
    found = re.search(pattern, prompt, re.DOTALL)
    if found is None:
        return []
    listed = found[1].strip().rstrip(".?!")
    parts = re.split(r"[,;#\n]", listed) if re.search(r"[,;#\n]", listed) else listed.split()
    parts = [re.sub(r"^\s*(and|or)\b", "", part).strip() for part in parts]
    return [part for part in parts if words(part)]


def _covered(pattern: str, metric: Metric, cases: Sequence[Case]) -> Measured:
    listed = [concepts_of(case.prompt, pattern) for case in cases]
    missing = next((case for case, concepts in zip(cases, listed, strict=True) if not concepts), None)
    if missing is not None:
        raise UserError(
            f"{missing.source}: the question lists no concepts where --metric coverage looks for them ({pattern}). "
            "Name another place: --metric 'coverage:PATTERN', a regular expression whose first group is the list."
        )
    return metric.mean([coverage(case.answer, concepts) for case, concepts in zip(cases, listed, strict=True)], cases)


def coverage_metric(pattern: str, directory: Path) -> Metric:
    """Concept coverage, with the place where questions list their concepts.

    Args:
        pattern: a regular expression whose first group is the list.
        directory: not used; every metric with a setting has it.

    Returns:
        The metric.

    Raises:
        UserError: it is no regular expression, or has no group.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"--metric coverage:{pattern} is not a regular expression: {error}.") from None
    if not groups:
        raise UserError(f"--metric coverage:{pattern} has no group. Put the list of concepts in parentheses: with (.+)")
    title = "concept coverage"
    return Metric(
        title,
        "words that the question asks for and the answer uses, in any form",
        None,
        figure=partial(_covered, pattern),
    )


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@cache
def _simplemma() -> Any:
    try:
        import simplemma
    except ImportError:
        raise UserError("Concept coverage needs simplemma. Install it: pip install 'tunesmith[evaluation]'") from None
    return simplemma


CONCEPT_METRICS = {"coverage": coverage_metric(AFTER_COLON, Path())}
"""Metrics of concepts by name."""
