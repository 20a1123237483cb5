"""Latency: the time to the first token, and tokens a second, by how many answers are written at once and how long
prompts are. Prompts are all different from their first words on, so that no server has a part of one in its cache."""

import random
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.suite import SuiteContext
from tunesmith.inference.sampling import Sampling
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Chat, Subject, Timing

CONCURRENT = (1, 8)
"""How many answers are written at the same time."""

WORDS = (32, 256)
"""Words of a prompt; about four thirds as many tokens."""

REQUESTS = 16
"""Answers that are timed at each of these; a 99th percentile of so few is close to the slowest."""

ANSWER = 32
"""The most tokens of an answer."""

PERCENTILES = (50, 95, 99)

_WORDS = (
    "river table seven window garden slow copper music paper winter yellow bridge doctor island engine quiet letter "
    "orange market silver forest candle number summer basket mirror rocket castle pencil harbor velvet planet"
).split()


class Latency:
    """Times answers of a model."""

    most_rows = REQUESTS

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the answers that are timed at each level.

        Returns:
            The percentiles of the time to the first token, and tokens a second, at each level.

        Raises:
            UserError: the model does not write text, or a server does not answer.
        """
        sampling = Sampling(ANSWER)
        figures: dict[str, Measured] = {}
        each = REQUESTS if context.count is None else max(1, min(REQUESTS, context.count))
        levels = [(concurrent, words) for words in WORDS for concurrent in CONCURRENT]
        subject.timings(
            prompts(1, min(WORDS), seed=len(levels)), sampling, 1
        )  # the first answer compiles and fills caches
        for done, (concurrent, words) in enumerate(levels):
            context.progress("latency", done, len(levels))
            chats = prompts(max(each, concurrent), words, seed=done)
            timings = subject.timings(chats, sampling, concurrent)
            figures |= level_figures(timings, concurrent, words)
        context.progress("latency", len(levels), len(levels))
        return figures


def prompts(count: int, words: int, seed: int) -> list[Chat]:
    """Questions of so many words, drawn so that no two begin alike.

    Args:
        count: of the questions.
        words: of each.
        seed: of the words.

    Returns:
        Chats of one turn.
    """
    draw = random.Random(seed)
    texts = (" ".join([str(draw.randrange(10**6)), *draw.choices(_WORDS, k=words - 7)]) for _ in range(count))
    return [[{"role": "user", "content": f"{text}. Tell a story with these words."}] for text in texts]


def level_figures(timings: Sequence[Timing], concurrent: int, words: int) -> dict[str, Measured]:
    """The figures of answers that were written at one level.

    Args:
        timings: of the answers.
        concurrent: how many were written at the same time.
        words: of the prompts.

    Returns:
        The figures by name.
    """
    units = [f"{concurrent} at once, {words} words, answer {number}" for number in range(1, len(timings) + 1)]
    level = f"{concurrent}x{words}"
    title = f"{concurrent} at once, {words} words"
    first = np.array([timing.first_token for timing in timings])
    figures = {
        f"first_token_p{percentile}_{level}": Measured(
            f"first token, p{percentile}; {title}",
            f"seconds until {percentile} % of the answers have begun",
            partial(_percentile, first, percentile),
            units,
            "lower",
            "seconds",
            is_compared=percentile == 50,
        )
        for percentile in PERCENTILES
    }
    speeds = [timing.tokens / timing.total for timing in timings]
    figures[f"tokens_per_second_{level}"] = mean_of(
        speeds, units, f"speed; {title}", "tokens of an answer, divided by the time until its end", "higher", "tokens/s"
    )
    return figures


def _percentile(values: NDArray[np.float64], percentile: int, rows: NDArray[np.int64]) -> float:
    return float(np.percentile(values[rows], percentile))
