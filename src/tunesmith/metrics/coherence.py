"""Answers that hold together: no loops, not empty, finished, in the right language, of the right length.

The language is detected by the script of the letters; between languages of one script by py3langid, if it is installed.
"""

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np
import regex

from tunesmith.metrics.metric import Case, Metric
from tunesmith.metrics.text import has_words, words
from tunesmith.statistics.measured import Measured, ratio_of

LOOP_TOKENS = 12
"""A repeated end is a loop from this length on: "no, no, no" is none."""

LANGUAGE_LETTERS = 20
"""Shorter texts are not distinguished by language, only by script."""

SURE = 0.9
"""The probability from which py3langid's answer counts."""

_TOKEN = regex.compile(r"\w+|[^\w\s]")
_ENDS = tuple(".!?…。！？।؟:;)]}\"'”’»`|")


def repetition(answer: str, expected: str) -> float:
    """The share of an answer's 4-grams that repeat an earlier one (seq-rep-4 of Welleck et al. 2020, section 6.1).

    Args:
        answer: the text to score.
        expected: not used; every metric has it.

    Returns:
        1 − distinct / all; 0 for fewer than four words.
    """
    return repeated_share(words(answer), 4)


def repeated_share(items: Sequence[Hashable], size: int) -> float:
    """The share of n-grams that repeat an earlier one.

    Args:
        items: words or tokens, in order.
        size: n.

    Returns:
        1 − distinct / all; 0 for fewer than n items.
    """
    grams = list(zip(*(items[start:] for start in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(answer: str, expected: str = "") -> float:
    """1 if an answer ends in a loop: its end repeats the same words or signs at least three times.

    Args:
        answer: the text to score. The last repetition may be cut.
        expected: not used; every metric has it.

    Returns:
        0 or 1.
    """
    tokens = _TOKEN.findall(answer.casefold())
    for period in range(1, len(tokens) // 3 + 1):
        same = 0
        while same < len(tokens) - period and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        if same >= 2 * period and same + period >= LOOP_TOKENS:
            return 1.0
    return 0.0


def is_empty(answer: str, expected: str) -> float:
    """1 if an answer has no letter and no digit.

    Args:
        answer: the text to score.
        expected: not used; every metric has it.

    Returns:
        0 or 1.
    """
    return float(not any(character.isalnum() for character in answer))


def same_language(answer: str, expected: str) -> float:
    """1 if an answer is in the expected answer's language.

    Different scripts (Latin, Cyrillic, Han …) are different languages; kana make a text Japanese. Texts of one script
    are distinguished by py3langid, if both are long enough and it is sure of both. What cannot be distinguished counts
    as the same.

    Args:
        answer: the text to score; an empty one is in no language.
        expected: a text in the right language.

    Returns:
        0 or 1.
    """
    ours, theirs = script(answer), script(expected)
    if ours != theirs or ours is None:
        return float(ours == theirs)
    languages = {language(text) for text in (answer, expected)} - {None}
    return float(len(languages) <= 1)


def script(text: str) -> str | None:
    """The script that most letters of a text belong to, such as `LATIN`; None without letters.

    Args:
        text: any text.

    Returns:
        The first word of the letters' Unicode names; `HIRAGANA` for any Japanese text, which mixes three scripts.
    """
    counts = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha())
    if not counts:
        return None
    if counts["HIRAGANA"] + counts["KATAKANA"] > 0.1 * counts.total():
        return "HIRAGANA"
    return counts.most_common(1)[0][0]


def language(text: str) -> str | None:
    """The language of a text as ISO 639-1, such as `en`.

    Args:
        text: any text.

    Returns:
        None if it is too short, py3langid is not sure, or it is not installed.
    """
    detector = _detector()
    if detector is None or sum(map(str.isalpha, text)) < LANGUAGE_LETTERS:
        return None
    name, probability = detector.classify(text)
    return str(name) if probability >= SURE else None


@cache
def _detector() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier: Any = LanguageIdentifier
    return identifier.from_model_file(MODEL_FILE, norm_probs=True)


def finished(metric: Metric, cases: Sequence[Case]) -> Measured:
    """The share of answers that ended by themselves, not at the limit of tokens.

    Args:
        metric: whose figure it is.
        cases: the answers. If it is not known why one ended, it is finished if it ends like a sentence, or if the
            expected answer does not.

    Returns:
        The figure.
    """
    return metric.mean([float(_is_finished(case)) for case in cases], cases)


def _is_finished(case: Case) -> bool:
    if case.finish_reason is not None:
        return case.finish_reason != "length"
    return bool(looks_finished(case.answer, case.expected))


def looks_finished(answer: str, expected: str) -> float:
    """1 if an answer ends like a sentence, or the expected answer does not.

    Args:
        answer: the text to score.
        expected: the text that it should be.

    Returns:
        0 or 1; an empty answer is not finished.
    """
    text = answer.rstrip()
    return float(bool(text) and (text.endswith(_ENDS) or not expected.rstrip().endswith(_ENDS)))


def length_ratio(metric: Metric, cases: Sequence[Case]) -> Measured:
    """Words of all answers for each word of the expected ones.

    Args:
        metric: whose figure it is.
        cases: the answers.

    Returns:
        The figure; 1 is as long as expected.
    """
    ours = np.array([len(words(case.answer)) for case in cases], np.float64)
    theirs = np.array([len(words(case.expected)) for case in cases])
    units = [case.source for case in cases]
    return ratio_of(ours, theirs, units, metric.title, metric.explanation, metric.better, metric.unit)


COHERENCE_METRICS = {
    "repetition": Metric(
        "repeated 4-grams", "4-grams of an answer that repeat an earlier one in it (Welleck et al. 2020)", repetition,
        better="lower",
    ),
    "loops": Metric("loops", "answers whose end repeats the same words three times or more", loops, better="lower"),
    "empty": Metric("empty", "answers without a letter or digit", is_empty, better="lower"),
    "same_language": Metric(
        "same language", "answers in the expected answer's language, by script and py3langid", same_language, has_words
    ),
    "finished": Metric(
        "finished", "answers that ended by themselves, not at the limit of tokens", looks_finished, figure=finished
    ),
    "length_ratio": Metric(
        "length", "words of the answers for each word of the expected ones; 1: as long", None, has_words,
        better="neither", unit="ratio", figure=length_ratio,
    ),
}  # fmt: skip
"""Metrics of coherence by name."""
