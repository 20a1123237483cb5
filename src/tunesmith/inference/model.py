"""`tunesmith.load`: a model to use, whatever it is stored as."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.extensions import failures_named
from tunesmith.config.registry import HEADS
from tunesmith.data.example import Message
from tunesmith.data.render import Renderer
from tunesmith.errors import UserError
from tunesmith.heads.prediction import Prediction
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.predict import predict, vector_of
from tunesmith.inference.writing_model import WritingModel, template_errors

Chat = str | Sequence[Message]
"""A question, or the turns of a chat."""


class Model(WritingModel):
    """A model to use. Its weights are loaded at the first call that needs them, and stay.

    Args:
        name: as in `load`.
        device: as in `load`.
        precision: as in `load`.
        weights: as in `load`.
        concurrent: as in `load`.
        cache: as in `load`.

    Raises:
        UserError: as `load` raises.
    """

    def classify(self, texts: str | Sequence[str]) -> list[list[Prediction]]:
        """The class, the labels, the value or the entities of each text, with probabilities.

        Args:
            texts: a text, or several.

        Returns:
            The predictions for each text; none where the model finds no label or no entity.

        Raises:
            UserError: the model does not classify texts.
        """
        self.require("classify")
        lines = [texts] if isinstance(texts, str) else texts
        with self._failures_named():
            return predict(self.model, self.tokenizer, self.reference.fitted_head(), lines)

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """The vector of each text.

        Args:
            texts: a text, or several.

        Returns:
            (texts, hidden) float32.

        Raises:
            UserError: the model does not embed texts.
        """
        self.require("embed")
        lines = [texts] if isinstance(texts, str) else list(texts)
        if not lines:
            raise UserError("There are no texts to embed.")
        with self._failures_named():
            vectors = [vector_of(self.model, self.tokenizer, self.head, text) for text in lines]
        return np.stack([vector.cpu().numpy() for vector in vectors])

    def reward(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[float]:
        """What a reward model says of answers; a graded one, the sum of its outputs. Only differences between answers
        to one prompt have a meaning.

        Args:
            prompts: a question, the turns of a chat, or several of either.
            completions: the answer to each, as text or turns.

        Returns:
            The reward of each.

        Raises:
            UserError: the model is no reward model, the template cannot render a chat, or a completion is missing.
        """
        if "reward" in self.head.commands:
            return [float(outputs.sum()) for outputs in self._ends(prompts, completions)]
        # It needs objectives, which other verbs do not import.
        from tunesmith.inference.rating import Rater, chat_of, rates_answers

        if not rates_answers(self.head):
            self.require("reward")
        rater = Rater(self)
        with template_errors():
            rows = [rater.ids(chat_of(*pair)) for pair in _pairs(prompts, completions)]
        return rater.scores([rater.truncated(row) for row in rows])

    def grades(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[dict[str, float]]:
        """How a graded reward model grades answers.

        Args:
            prompts: as in `reward`.
            completions: as in `reward`.

        Returns:
            The expected grade of each attribute, for each answer.

        Raises:
            UserError: the model gives no grades, or as `reward` raises.
        """
        head: Any = self.head
        if head.kind != "graded_reward":
            raise UserError(
                f"{self.name} gives no grades. Train a model that does: objective: {{kind: graded_reward}}."
            )
        return [head.grades(outputs[0].tolist()) for outputs in self._ends(prompts, completions)]

    def _ends(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[NDArray[np.float32]]:
        """The head's outputs (1, outputs) at the end of each answer."""
        from tunesmith.inference.rewards import ends_of  # it needs objectives, which other verbs do not import

        with template_errors():
            return ends_of(self.model, Renderer(self.tokenizer), self.head, _pairs(prompts, completions))

    def step_rewards(self, prompt: Chat, steps: Sequence[str]) -> list[float]:
        """What a process reward model says of an answer's steps.

        Args:
            prompt: a question, or the turns of a chat.
            steps: of the answer.

        Returns:
            The probability that each step is right.

        Raises:
            UserError: the model is no process reward model, the template cannot render the chat, or there are no steps.
        """
        if self.head.kind != "process_reward":
            raise UserError(f"{self.name} is no process reward model. Train one: objective: {{kind: process_reward}}.")
        if not steps:
            raise UserError("There are no steps to rate.")
        from tunesmith.inference.rewards import step_rewards_of

        with template_errors():
            return step_rewards_of(self.model, Renderer(self.tokenizer), self.head, prompt, steps)

    def _failures_named(self) -> AbstractContextManager[None]:
        """Turn a failure of a user's head into an error that names it."""
        kind = self.head.kind
        return failures_named({kind: HEADS.path(kind)} if HEADS.is_users(kind) else {})


def load(
    name: str | Path,
    device: str = "auto",
    precision: str = "auto",
    weights: str | None = None,
    concurrent: int = CONCURRENT,
    cache: str = "auto",
) -> Model:
    """A model to use: to generate, chat, classify, embed, or score texts.

    Args:
        name: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        precision: `auto` (bf16 where it is faster), `bf16` or `fp32`.
        weights: how the base's weights are stored in memory: `auto` (as `precision`), `int8`, `nf4`, `fp4`, …; None: as
            in the run's recipe.
        concurrent: the most answers that are computed at the same time.
        cache: how keys and values are stored while texts are written: `auto` (as the model computes them), or `int8`,
            which takes about a quarter of the memory of fp32 and changes answers a little.

    Returns:
        The model. Its weights are loaded at the first call that needs them.

    Raises:
        UserError: nothing of that name exists, the run has not finished, or the machine has no such device.
    """
    return Model(name, device, precision, weights, concurrent, cache)


def _pairs(prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[tuple[Chat, Chat]]:
    """Each prompt with its completion."""
    asked, answers = _several(prompts), _several(completions)
    if len(asked) != len(answers):
        raise UserError(f"reward needs a completion for each prompt: {len(answers)} for {len(asked)} prompts.")
    return list(zip(asked, answers, strict=True))


def _several(chats: Chat | Sequence[Chat]) -> list[Chat]:
    """Chats as a list; one is a text, or a list of turns."""
    if isinstance(chats, str):
        return [chats]
    return [chats] if chats and isinstance(chats[0], dict) else list(chats)  # type: ignore[arg-type,list-item]
