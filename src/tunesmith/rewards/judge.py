"""Rewards by a language model as a judge."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.metrics import Case
from tunesmith.rewards.function import RewardFunction, Text, answer_of, column_of, is_path, question_of
from tunesmith.server_address import is_address
from tunesmith.subjects.judge import RUBRIC, Judge
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.verdicts import HIGHEST, LOWEST


class JudgeReward(RewardFunction):
    """A language model's score of the answer by a rubric, from 0 to 1. No reward where its reply cannot be read."""

    paths: ClassVar[tuple[str, ...]] = ("model", "rubric")

    model: str
    """The judge: a run, a model, or a server with OpenAI's protocol as `http://HOST:PORT/v1#MODEL`."""

    rubric: str | None = None
    """What makes an answer good: a text file without spaces in its path, or the text itself. Default: it is true, whole
    and clear."""

    column: str | None = None
    """The column with a good answer, which the judge reads too. Default: none."""

    concurrent: int = Field(default=CONCURRENT, ge=1)
    """The most replies that are computed at the same time."""

    def check(self) -> None:
        subject = self._judge[0]
        if isinstance(subject, LocalSubject):
            subject.model.require("generate")
        else:
            subject.client.model  # noqa: B018  # the server answers

    def close(self) -> None:
        """Free the model."""
        if "_judge" in vars(self):
            self._judge[0].close()

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        expected = [None] * len(prompts) if self.column is None else column_of(columns, self.column)
        cases = [
            Case("", question_of(prompt), answer_of(completion), right or "")
            for prompt, completion, right in zip(prompts, completions, expected, strict=True)
        ]
        found = (self._judge[1].single_scores(cases) - LOWEST) / (HIGHEST - LOWEST)
        return [None if np.isnan(score) else float(score) for score in found]

    @cached_property
    def _judge(self) -> tuple[LocalSubject | ServedSubject, Judge]:
        subject = (
            ServedSubject(self.model, OpenAIClient.of(self.model), self.concurrent)
            if is_address(self.model)
            else LocalSubject(self.model, Model(self.model, concurrent=self.concurrent), keeps=False)
        )
        if self.rubric is None or not is_path(self.rubric):
            return subject, Judge(subject, self.rubric or RUBRIC)
        return subject, Judge.by_file(subject, self.rubric)
