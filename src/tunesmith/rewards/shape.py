"""Rewards for how a completion looks: its format, length, language, repetitions. They need no right answer."""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import regex
from pydantic import Field, model_validator

from tunesmith.errors import UserError
from tunesmith.metrics.coherence import language, repeated_share, same_language
from tunesmith.metrics.json_text import is_json, schema_in, valid_by
from tunesmith.metrics.patterns import Match, searching
from tunesmith.metrics.text import words
from tunesmith.rewards.function import RewardFunction, Text, answer_of, question_of, text_of

Unit = Literal["tokens", "words", "characters"]


class EachAlone(RewardFunction):
    """Scores each completion by its text."""

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        return [self.score(completion) for completion in completions]

    def score(self, completion: Text) -> float:
        """The reward of one completion.

        Args:
            completion: a text or messages.
        """
        raise NotImplementedError


class Regex(EachAlone):
    """1 if a pattern is found in the answer, after its reasoning, else 0."""

    pattern: str
    """A regular expression of the package regex, whose syntax includes Python's. It may match anywhere."""

    def check(self) -> None:
        self._search  # noqa: B018  # says that it is no regular expression

    def score(self, completion: Text) -> float:
        return float(self._search(answer_of(completion)) is not None)

    @cached_property
    def _search(self) -> Callable[[str], Match | None]:
        return searching(self.pattern, f"pattern: {self.pattern}")


class Format(EachAlone):
    """1 if the whole completion, reasoning included, has a format, else 0."""

    pattern: str = r"\s*<think>(?!.*<think>)(.*?)</think>(?!.*</think>).*\S.*"
    """A regular expression for the whole completion; a period matches line breaks too. Default: one
    `<think>…</think>`, then an answer."""

    def check(self) -> None:
        self._search  # noqa: B018

    def score(self, completion: Text) -> float:
        return float(self._search(text_of(completion)) is not None)

    @cached_property
    def _search(self) -> Callable[[str], Match | None]:
        return searching(self.pattern, f"pattern: {self.pattern}", whole=True, flags=regex.DOTALL)


class Json(EachAlone):
    """1 if the answer is a JSON object or array, and valid by a schema if there is one, else 0."""

    paths: ClassVar[tuple[str, ...]] = ("json_schema",)

    json_schema: dict[str, Any] | bool | str | None = None
    """A JSON schema, or its file. Default: any JSON."""

    def check(self) -> None:
        self._valid  # noqa: B018

    def score(self, completion: Text) -> float:
        return float(self._valid(answer_of(completion)))

    @cached_property
    def _valid(self) -> Callable[[str], bool]:
        given = self.json_schema
        if given is None:
            return is_json
        return valid_by(schema_in(Path(given), "json") if isinstance(given, str) else given, "json_schema")


class Length(RewardFunction):
    """0 within a range of lengths, falling to −1 at its bounds.

    At the upper bound it is the soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, eq. 13), with
    L_max = `maximum` and L_cache = `margin`. At the lower bound it is mirrored.
    """

    maximum: int | None = Field(default=None, gt=0)
    """−1 above it. Default: no upper bound."""

    minimum: int = Field(default=0, ge=0)
    """−1 below it. Default 0: no lower bound."""

    margin: int = Field(default=0, ge=0)
    """Within this distance of a bound the reward falls linearly. Default 0: at once."""

    unit: Unit = "tokens"
    """What is counted; `words` and `characters` without the reasoning."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> "Length":
        if self.maximum is None and not self.minimum:
            raise ValueError("needs a maximum or a minimum")
        margins = self.margin * ((self.maximum is not None) + bool(self.minimum))
        if self.maximum is not None and self.minimum + margins > self.maximum:
            raise ValueError("leaves no length with the reward 0: minimum, maximum and their margins overlap")
        return self

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        return [self.reward(length) for length in _lengths(self.unit, completions, completion_ids)]

    def reward(self, length: int) -> float:
        """The reward of a length.

        Args:
            length: in `unit`.
        """
        below = self._beyond(self.minimum + self.margin - length) if self.minimum else 0.0
        above = self._beyond(length - (self.maximum - self.margin)) if self.maximum is not None else 0.0
        return -max(below, above)

    def _beyond(self, excess: int) -> float:
        """From 0 where the margin begins to 1 at the bound and beyond it."""
        if excess <= 0:
            return 0.0
        return min(1.0, excess / self.margin) if self.margin else 1.0


class Language(RewardFunction):
    """1 if the answer is in a language, else 0. One whose language is not certain, such as a short one, has no reward.

    By py3langid, and by the script of the letters.
    """

    language: str | None = None
    """The language as ISO 639-1, such as `de`. Default: the prompt's; then what cannot be distinguished counts as the
    same."""

    def check(self) -> None:
        if find_spec("py3langid") is None:
            raise UserError("it needs py3langid. Install it: pip install 'tunesmith[evaluation]'")

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        answers = [answer_of(completion) for completion in completions]
        if self.language is None:
            return [same_language(answer, question_of(prompt)) for answer, prompt in zip(answers, prompts, strict=True)]
        found = [language(answer) for answer in answers]
        return [None if each is None else float(each == self.language) for each in found]


class Repetition(RewardFunction):
    """Minus the share of n-grams that repeat an earlier one: from 0 to −1 (Yeo et al. 2025, arXiv 2502.03373, appendix
    C.2). Against loops and padding, which other rewards may invite."""

    size: int = Field(default=4, ge=1)
    """n."""

    unit: Literal["tokens", "words"] = "words"
    """What an n-gram is made of."""

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        items: Sequence[Sequence[Hashable]] = (
            _tokens(completion_ids)
            if self.unit == "tokens"
            else [words(text_of(completion)) for completion in completions]
        )
        return [-repeated_share(each, self.size) for each in items]


def _lengths(unit: Unit, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None) -> list[int]:
    if unit == "tokens":
        return [len(ids) for ids in _tokens(completion_ids)]
    answers = [answer_of(completion) for completion in completions]
    return [len(words(answer)) if unit == "words" else len(answer) for answer in answers]


def _tokens(completion_ids: Sequence[Sequence[int]] | None) -> Sequence[Sequence[int]]:
    if completion_ids is None:
        raise UserError("it counts tokens, and the completions have none. Set options.unit: words.")
    return completion_ids
