"""Rewards by a model that reads text: a classifier, a regression or a reward model, in this process or on a server."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.heads.prediction import inputs_of
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.inference.rating import Ids, Rater, chat_of, logits_of_rows
from tunesmith.rewards.function import RewardFunction, Text, answer_of, text_of
from tunesmith.rewards.reward_server import Read, RewardServer
from tunesmith.server_address import is_address


class Classifier(RewardFunction):
    """The score of a model that reads text: its value if it has one output (a regression or a reward model), or the
    probability of a label."""

    paths: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """A run with a classification, a regression or a reward model, a sequence classifier of transformers, or a reward
    model on a server with vLLM's pooling API as `http://HOST:PORT/v1#MODEL`. It has its own tokenizer."""

    label: str | None = None
    """Whose probability is the reward. Required if the model has several labels."""

    reads: Literal["answer", "completion", "chat"] = "answer"
    """What it reads: the answer without its reasoning, the whole completion, or the prompt and the answer, by the
    model's own chat template, as reward models do."""

    device: str = "auto"
    """Where it is computed: `auto` (a GPU if there is one), `cpu`, `cuda`, …"""

    concurrent: int = Field(default=CONCURRENT, ge=1)
    """The most requests to a server at the same time."""

    def check(self) -> None:
        self._scorer.check(self.reads == "chat")

    def close(self) -> None:
        """Free the model."""
        vars(self).pop("_scorer", None)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        return list(self._scorer.scores([self._read(*pair) for pair in zip(prompts, completions, strict=True)]))

    def _read(self, prompt: Text, completion: Text) -> Read:
        """A text, or the turns of a chat."""
        if self.reads == "chat":
            return chat_of(prompt, answer_of(completion))
        return answer_of(completion) if self.reads == "answer" else text_of(completion)

    @cached_property
    def _scorer(self) -> "LocalClassifier | RewardServer":
        if not is_address(self.model):
            return LocalClassifier(self.model, self.label, self.device)
        for name, is_set in {"label": self.label is not None, "device": self.device != "auto"}.items():
            if is_set:
                raise UserError(f"{self.model} is a server, and options.{name} is for a model in this process.")
        return RewardServer(OpenAIClient.of(self.model), self.concurrent)


class LocalClassifier:
    """A classifier in this process.

    Args:
        name: of the model.
        label: whose probability is the score; None: the model has one output.
        device: where it is computed.
    """

    def __init__(self, name: str, label: str | None, device: str) -> None:
        self._name, self._label, self._device = name, label, device

    def check(self, reads_chats: bool) -> None:
        """Refuse a model that gives no such score; its weights are not loaded for that.

        Args:
            reads_chats: whether it reads chats, not texts.

        Raises:
            UserError: it is none, or an option does not fit.
        """
        labels = self._head.labels
        if self._label is None and len(labels) > 1 and not (reads_chats and self._is_reward_model):
            raise UserError(f"{self._name} has several labels. Set options.label: {' or '.join(labels)}.")
        if self._label is not None and self._label not in labels:
            raise UserError(f"{self._name} has no label {self._label}. It has {', '.join(labels)}.")
        if reads_chats and not self._model.tokenizer.chat_template:
            raise UserError(f"{self._name} has no chat template. Set options.reads: answer.")

    def scores(self, reads: Sequence[Read]) -> list[float]:
        """The score of each text or chat; what is longer than the model's context is truncated.

        Args:
            reads: texts or chats.

        Raises:
            UserError: the chat template cannot render a chat.
        """
        model, rater, are_chats = self._model, Rater(self._model), any(not isinstance(each, str) for each in reads)
        if are_chats and self._label is None:
            return rater.scores([self._chat_ids(rater, each) for each in reads])
        texts = [
            torch.as_tensor(self._chat_ids(rater, each), dtype=torch.long, device=model.device)
            if are_chats
            else inputs_of(model.model, model.tokenizer, str(each))["input_ids"][0]
            for each in reads
        ]
        logits = logits_of_rows(model.model, texts)
        if self._label is None:
            return [float(each[0]) for each in logits]
        number = self._head.labels.index(self._label)
        return [float(self._head.probabilities(each)[number]) for each in logits]

    def _chat_ids(self, rater: Rater, chat: Any) -> Ids:
        try:
            return rater.truncated(rater.ids(chat))
        except UnusableError as error:
            raise UserError(f"{self._name} cannot read a chat: {error}.") from None

    @cached_property
    def _model(self) -> Model:
        return Model(self._name, self._device)

    @property
    def _is_reward_model(self) -> bool:
        return "reward" in self._head.commands

    @property
    def _head(self) -> SequenceClassificationHead:
        head = self._model.head
        if not isinstance(head, SequenceClassificationHead):
            raise UserError(f"{self._name} does not classify texts. Name a model that does.")
        return head
