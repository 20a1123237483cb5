"""How suites score answers to the user's own questions: by one metric, chosen by what the expected answers are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.reasoning import final_answer
from tunesmith.evaluation.rows import Task
from tunesmith.metrics import METRICS, Metric, fitting, scores
from tunesmith.subjects.subject import Answer

LABEL_WORDS = 3
"""Expected answers of at most as many words are labels, names or numbers, which are right or wrong as a whole."""


def main_metric_name(expected: Sequence[str]) -> str:
    """The metric that says most about a task in one number.

    Args:
        expected: the expected answers.

    Returns:
        Its name in `METRICS`: the F1 of fields if all are JSON, exact match if all are a few words, and else ROUGE-L.
    """
    if "fields" in fitting(METRICS, expected):
        return "fields"
    are_labels = all(len(text.split()) <= LABEL_WORDS for text in expected)  # card_arrival is one word
    return "exact_match" if are_labels else "rouge_l"


def main_metric(expected: Sequence[str]) -> Metric:
    """As `main_metric_name`, the metric itself.

    Args:
        expected: the expected answers.
    """
    return METRICS[main_metric_name(expected)]


def scored(metric: Metric, answers: Sequence[Answer], expected: Sequence[str]) -> NDArray[np.float64]:
    """The score of each answer, without its reasoning.

    Args:
        metric: with a score of a single answer.
        answers: as a model wrote them.
        expected: what they should be.

    Returns:
        (answers,) from 0 to 1.
    """
    return scores(metric, [final_answer(answer.text) for answer in answers], expected)


def prompt_of(task: Task) -> str:
    """The user's last turn.

    Args:
        task: a question.

    Returns:
        Its text.
    """
    return str(task.chat[-1]["content"])
