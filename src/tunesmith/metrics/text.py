"""Metrics that compare the words of an answer with those of the expected one."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.metrics.metric import Case, Metric
from tunesmith.statistics.measured import Measured

Rouge = Literal["rouge1", "rouge2", "rougeL"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match_strict(answer: str, expected: str) -> float:
    """1 if both are equal to the letter; only white space around them does not count."""
    return float(answer.strip() == expected.strip())


def exact_match(answer: str, expected: str) -> float:
    """1 if both are equal, ignoring case, white space and final periods."""
    return float(_plain(answer) == _plain(expected))


def first_word(answer: str, expected: str) -> float:
    """1 if both start with the same word, ignoring case and punctuation."""
    return float(bool(words(answer)) and words(answer)[:1] == words(expected)[:1])


def word_f1(answer: str, expected: str) -> float:
    """F1 of the words that both share, in any order (Rajpurkar et al. 2016, section 6.1).

    Lower case, without punctuation and the articles a, an, the, as the official script of SQuAD normalizes.

    Args:
        answer: the text to score.
        expected: the text that it should be.

    Returns:
        2 · common / (words of both); if either has no words, 1 if neither has.
    """
    ours, theirs = _squad_words(answer), _squad_words(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of stemmed words (Lin 2004), by the rouge-score package."""
    return rouge("rougeL", answer, expected)


def rouge(kind: Rouge, answer: str, expected: str) -> float:
    """F1 of stemmed words (`rouge1`), pairs of words (`rouge2`) or their longest common subsequence (Lin 2004).

    Args:
        kind: as the rouge-score package names it.
        answer: the text to score.
        expected: the text that it should be.

    Returns:
        From 0 to 1.
    """
    return float(_rouge(kind).score(expected, answer)[kind].fmeasure)


def sentence_bleu(answer: str, expected: str) -> float:
    """BLEU of one answer, over n-grams that it is long enough for, from 0 to 1, by sacrebleu."""
    return float(_bleu().sentence_score(answer, [expected]).score) / 100


def bleu(metric: Metric, cases: Sequence[Case]) -> Measured:
    """BLEU of all answers together (Papineni et al. 2002), from 0 to 100, as sacrebleu computes it.

    The counts of matching n-grams are summed over the rows of a resample, as the measure is defined; it is not a mean.

    Args:
        metric: whose figure it is.
        cases: the answers.

    Returns:
        The figure in points.
    """
    from sacrebleu.metrics.bleu import BLEU

    found = [_bleu().sentence_score(case.answer, [case.expected]) for case in cases]
    counts = np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in found], np.int64)

    def of(rows: NDArray[np.int64]) -> float:
        total = counts[rows].sum(0).tolist()
        return float(BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], "exp").score)

    return _points(metric, of, cases)


def sentence_chrf(answer: str, expected: str) -> float:
    """chrF of one answer, from 0 to 1, by sacrebleu."""
    return float(_chrf().sentence_score(answer, [expected]).score) / 100


def chrf(metric: Metric, cases: Sequence[Case]) -> Measured:
    """chrF of all answers together (Popović 2015), from 0 to 100, as sacrebleu computes it.

    Args:
        metric: whose figure it is.
        cases: the answers.

    Returns:
        The figure in points.
    """
    answers, expected = [case.answer for case in cases], [case.expected for case in cases]
    counts = _chrf_counts(answers, expected)

    def of_texts(rows: NDArray[np.int64]) -> float:
        picked = rows.tolist()
        return float(_chrf().corpus_score([answers[row] for row in picked], [[expected[row] for row in picked]]).score)

    if counts is None:
        return _points(metric, of_texts, cases)
    return _points(
        metric, lambda rows: float(_chrf()._compute_score_from_stats(counts[rows].sum(0).tolist()).score), cases
    )


def _chrf_counts(answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.int64] | None:
    """(rows, counts) from sacrebleu's own internals, which makes a resample a sum; None if this version has none."""
    if not all(hasattr(_chrf(), name) for name in ("_extract_corpus_statistics", "_compute_score_from_stats")):
        return None
    return np.array(_chrf()._extract_corpus_statistics(list(answers), [list(expected)]), np.int64)


def _points(metric: Metric, of: Any, cases: Sequence[Case]) -> Measured:
    return Measured(metric.title, metric.explanation, of, [case.source for case in cases], metric.better, metric.unit)


def has_words(text: str) -> bool:
    """Whether there is anything to compare with.

    Args:
        text: an expected answer.

    Returns:
        True if it has a word.
    """
    return bool(words(text))


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Args:
        text: any text.

    Returns:
        Letters and digits; hyphens and apostrophes within a word belong to it.
    """
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


@cache
def _rouge(kind: Rouge) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


TEXT_METRICS = {
    "rouge_l": Metric("word overlap", "words shared with the expected answer, in order (ROUGE-L F1)", rouge_l),
    "first_word": Metric("first word correct", "answers that start with the expected answer's first word", first_word),
    "exact_match": Metric("exact match", "answers that equal the expected answer, word for word", exact_match),
    "exact_match_strict": Metric(
        "exact match, strict", "answers that equal the expected answer to the letter, case and periods included",
        exact_match_strict,
    ),
    "word_f1": Metric("F1 of words", "words shared with the expected answer, in any order (as in SQuAD)", word_f1),
    "rouge_1": Metric("ROUGE-1", "words shared with the expected answer, stemmed (F1)", partial(rouge, "rouge1")),
    "rouge_2": Metric("ROUGE-2", "pairs of words shared with the expected answer (F1)", partial(rouge, "rouge2")),
    "bleu": Metric(
        "BLEU", "n-grams of the answers that are in the expected ones, 0 to 100 over all rows (sacrebleu)",
        sentence_bleu, has_words, unit="points", figure=bleu,
    ),
    "chrf": Metric(
        "chrF", "n-grams of characters shared with the expected answers, 0 to 100 over all rows (sacrebleu)",
        sentence_chrf, has_words, unit="points", figure=chrf,
    ),
}  # fmt: skip
"""Metrics of words by name."""

SHOWN_WHERE_THEY_DIFFER = {"exact_match_strict": "exact_match"}
"""A metric → the one that it repeats in most tasks."""
