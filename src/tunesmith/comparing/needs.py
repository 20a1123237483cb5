"""What each row needs that the model alone does not have: facts from documents, a form from examples, both, or neither.

facts    the answer has words that the question does not have, most of them stand in one chunk of the documents, and
         in no single training row
form     the plain answer does not look like the expected answers: a classifier of character n-grams, trained on the
         training rows' answers and on the model's plain answers to other rows, tells them apart

Both are measured on words and characters, not on meanings.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tunesmith.evaluation.rows import Task
from tunesmith.metrics.style import FEWEST, StyleClassifier

Need = Literal["facts", "form", "both", "neither"]

NEEDS: tuple[str, ...] = get_args(Need)

COVERED = 0.6
"""The share of an answer's new words that a passage must hold, so that the answer stands in it."""

KNOWN_APART = 0.6
"""How much more often the classifier must find the expected answers than it mistakes plain ones for them (Youden's J).
Below it, plain answers look as expected, so the form is nothing that has to be learned."""

_WORD = re.compile(r"\w+")

_COMMON = frozenset(
    "a an and are as at be been but by can could did do does for from had has have how i if in into is it its may "
    "more most my no not of on one or our out she should so some such than that the their them then there these they "
    "this to up use used was we were what when where which who will with would you your".split()
)
"""Words that stand in nearly every passage."""


@dataclass(frozen=True, slots=True)
class Passages:
    """Where facts may stand.

    Attributes:
        documents: maps a question with its answer to the chunks that fit best.
        rows: the content words of each training row, question and answer.
    """

    documents: Callable[[str], Sequence[str]]
    rows: Sequence[frozenset[str]]


def needs_of(
    tasks: Sequence[Task],
    passages: Passages | None,
    plain: Sequence[str],
    other_plain: Sequence[str],
    learned: Sequence[str],
) -> dict[str, Need]:
    """What each row needs.

    Args:
        tasks: the rows.
        passages: None if there are no documents: then no row needs facts.
        plain: the model's answers to the tasks without help.
        other_plain: its answers to other rows, to train the classifier.
        learned: the expected answers of training rows, to train the classifier.

    Returns:
        By the row's source.
    """
    facts = [passages is not None and needs_facts(task, passages) for task in tasks]
    form = needs_form(plain, other_plain, learned)
    names: Mapping[tuple[bool, bool], Need] = {
        (True, False): "facts", (False, True): "form", (True, True): "both", (False, False): "neither"
    }  # fmt: skip
    return {task.source: names[pair] for task, pair in zip(tasks, zip(facts, form, strict=True), strict=True)}


def needs_facts(task: Task, passages: Passages) -> bool:
    """Whether the answer's new words stand in one chunk of the documents, and in no training row.

    Args:
        task: a question with its expected answer.
        passages: where they may stand.

    Returns:
        False if the answer has no word that the question does not have.
    """
    question = str(task.chat[-1]["content"])
    new = content_words(task.expected) - content_words(question)
    if not new or coverage(new, passages.rows) >= COVERED:
        return False
    chunks = passages.documents(f"{question} {task.expected}")
    return coverage(new, [content_words(chunk) for chunk in chunks]) >= COVERED


def needs_form(plain: Sequence[str], other_plain: Sequence[str], learned: Sequence[str]) -> list[bool]:
    """Whether each plain answer does not look like the expected answers.

    Args:
        plain: the answers in question.
        other_plain: plain answers to other rows.
        learned: expected answers of training rows.

    Returns:
        (plain,) All False if there are too few rows to tell, or plain answers look as expected.
    """
    others = [text for text in other_plain if text.strip()]
    if min(len(others), len(learned)) < FEWEST:
        return [False] * len(plain)
    classifier = StyleClassifier.trained(learned, others)
    if classifier.found - classifier.mistaken < KNOWN_APART:
        return [False] * len(plain)
    return [not hit for hit in classifier.in_style(plain)]


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say something, in lower case; numbers are words.

    Args:
        text: any text.
    """
    return frozenset(_WORD.findall(text.casefold())) - _COMMON


def coverage(words: frozenset[str], passages: Sequence[frozenset[str]]) -> float:
    """The largest share of words that a single passage holds.

    Args:
        words: at least one.
        passages: the words of each.

    Returns:
        0 without passages.
    """
    return max((len(words & passage) / len(words) for passage in passages), default=0.0)
