"""Rewards by models: a classifier, a regression or a reward model, and a language model as a judge."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tunesmith.data.pack import bucket_by_length
from tunesmith.errors import UserError
from tunesmith.heads.prediction import inputs_of, room_for_text
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.metrics import Case
from tunesmith.models.prompts import padded, plain_model
from tunesmith.rewards.function import RewardFunction, Text, answer_of, column_of, is_path, question_of, text_of
from tunesmith.subjects.judge import RUBRIC, Judge
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.verdicts import HIGHEST, LOWEST

TOKENS = 4096
"""In a batch of texts that a classifier reads, with the padding."""


class Classifier(RewardFunction):
    """The score of a model that reads text: its value if it has one output (a regression or a reward model), or the
    probability of a label."""

    paths: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """A run with a classification or regression, or a sequence classifier of transformers. It has its own tokenizer."""

    label: str | None = None
    """Whose probability is the reward. Required if the model has several labels."""

    reads: Literal["answer", "completion", "chat"] = "answer"
    """What it reads: the answer without its reasoning, the whole completion, or the prompt and the answer, by the
    model's own chat template, as reward models do."""

    device: str = "auto"
    """Where it is computed: `auto` (a GPU if there is one), `cpu`, `cuda`, …"""

    def check(self) -> None:
        self._number  # noqa: B018

    def close(self) -> None:
        """Free the model."""
        vars(self).pop("_model", None)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        texts = [self._inputs(*pair) for pair in zip(prompts, completions, strict=True)]
        plain = plain_model(self._model.model)
        can_pad = plain.config.get_text_config().pad_token_id is not None  # by which the last token is found
        scores: list[float | None] = [None] * len(texts)
        for items in bucket_by_length([len(text) for text in texts], TOKENS if can_pad else 1):
            for item, score in zip(items, self._scores([texts[item] for item in items]), strict=True):
                scores[item] = score
        return scores

    @torch.no_grad()
    def _scores(self, texts: Sequence[torch.Tensor]) -> list[float]:
        """Of texts as ids, in a padded batch, by the family's own forward pass."""
        model = self._model.model
        ids, mask = padded(plain_model(model), texts)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        if logits.shape[1] == 1:
            return [float(score) for score in logits[:, 0]]
        return [float(self._head.probabilities(each)[self._number]) for each in logits]

    def _inputs(self, prompt: Text, completion: Text) -> torch.Tensor:
        """The ids that it reads (tokens,); a longer text is truncated to the model's context."""
        model, tokenizer = self._model.model, self._model.tokenizer
        if self.reads != "chat":
            text = answer_of(completion) if self.reads == "answer" else text_of(completion)
            return inputs_of(model, tokenizer, text)["input_ids"][0]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        answer = answer_of(completion)
        for token in tokenizer.all_special_tokens:  # they would be read as the template's
            answer = answer.replace(token, "")
        room = room_for_text(model)
        limit = {} if room is None else {"truncation": True, "max_length": room}
        inputs = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}], return_tensors="pt", return_dict=True, **limit
        )
        ids: torch.Tensor = inputs["input_ids"][0].to(model.device)
        return ids

    @cached_property
    def _model(self) -> Model:
        return Model(self.model, self.device)

    @property
    def _head(self) -> SequenceClassificationHead:
        head = self._model.head
        if not isinstance(head, SequenceClassificationHead):
            raise UserError(f"{self.model} does not classify texts. Name a model that does.")
        return head

    @cached_property
    def _number(self) -> int:
        """Of the label."""
        labels = self._head.labels
        if self.label is None and len(labels) > 1:
            raise UserError(f"{self.model} has several labels. Set options.label: {' or '.join(labels)}.")
        if self.label is not None and self.label not in labels:
            raise UserError(f"{self.model} has no label {self.label}. It has {', '.join(labels)}.")
        if self.reads == "chat" and not self._model.tokenizer.chat_template:
            raise UserError(f"{self.model} has no chat template. Set options.reads: answer.")
        return 0 if self.label is None else labels.index(self.label)


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
        target, _, served = self.model.partition("#")
        subject = (
            ServedSubject(self.model, OpenAIClient(target, served or None), self.concurrent)
            if target.startswith(("http://", "https://"))
            else LocalSubject(self.model, Model(self.model, concurrent=self.concurrent), keeps=False)
        )
        if self.rubric is None or not is_path(self.rubric):
            return subject, Judge(subject, self.rubric or RUBRIC)
        return subject, Judge.by_file(subject, self.rubric)
