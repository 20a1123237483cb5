"""What a reward model says of chats whose answers may hold anything, such as those of a policy in training."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.data.example import Message
from tunesmith.data.pack import bucket_by_length
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.prediction import room_for_text
from tunesmith.inference.held_out import row_outputs
from tunesmith.inference.opened_model import OpenedModel
from tunesmith.inference.rewards import SOURCE, Chat, turns_of
from tunesmith.models.prompts import padded, plain_model

Ids = NDArray[np.int32]

TOKENS = 4096
"""In a batch, with the padding."""


class Rater:
    """A reward model, or another sequence classifier with one output, that rates the last turn of chats.

    Args:
        model: whose weights are loaded when they are needed.
    """

    def __init__(self, model: OpenedModel) -> None:
        self._model = model

    def ids(self, chat: Sequence[Message]) -> Ids:
        """The tokens (tokens,) of a chat, up to where the model reads.

        A model of ours reads the token that ends the last turn, as in training; another one what the template writes
        after it, too, as transformers' and TRL's do. Control tokens in a turn, which could end it, are left out.

        Args:
            chat: the turns, the answer last.

        Raises:
            UnusableError: the template cannot render the chat.
            UserError: there is no template.
        """
        template = self._renderer.template
        turns = [_without(message, template.special_tokens) for message in chat]
        text = template.text(turns)
        if self._head.reads_turn_end:
            only = sum(turn["role"] == "assistant" for turn in turns) == 1
            try:
                turn = template.turn(turns, only=only)
                text = turn.text[: turn.spans[-1][1]]
            except UnusableError:  # as the answer is, the template changes the prompt before it
                text = text.rstrip()
        return self.text_ids(text, special=False)

    def text_ids(self, text: str, special: bool) -> Ids:
        """The tokens (tokens,) of a text that a template rendered.

        Args:
            text: names of control tokens in it are read as these.
            special: whether the tokenizer adds its own control tokens.
        """
        tokens = self._model.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return np.asarray(tokens, np.int32)

    @property
    def room(self) -> int | None:
        """The most tokens of a chat; None: no limit."""
        return room_for_text(self._model.model)

    def truncated(self, ids: Ids) -> Ids:
        """As many tokens as there is room for, cut on the tokenizer's side."""
        if self.room is None or len(ids) <= self.room:
            return ids
        return ids[-self.room :] if self._model.tokenizer.truncation_side == "left" else ids[: self.room]

    def scores(self, rows: Sequence[Ids]) -> list[float]:
        """The reward of each chat; of a graded reward model, the sum of its outputs.

        Args:
            rows: from `ids`, truncated.
        """
        model = self._model.model
        if self._head.reads_turn_end:
            table = TokenTable.build((ids, np.arange(len(ids)) == len(ids) - 1, SOURCE, (0.0,)) for ids in rows)
            return [float(outputs.sum()) for outputs in row_outputs(self._model.head, model, table, TOKENS)]
        tensors = [torch.as_tensor(ids, dtype=torch.long, device=model.device) for ids in rows]
        return [float(logits[0]) for logits in logits_of_rows(model, tensors)]

    @property
    def _head(self) -> Any:
        return self._model.head

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._model.tokenizer)


def chat_of(prompt: Chat, answer: Chat) -> list[Message]:
    """A prompt and its answer as one chat; a text is a turn of the user, or of the assistant."""
    return [*turns_of(prompt, "user"), *turns_of(answer, "assistant")]


def rates_answers(head: Head) -> bool:
    """Whether a model with this head gives one number for a chat."""
    return "reward" in head.commands or len(head.labels) == 1


@torch.no_grad()
def logits_of_rows(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """The logits (labels,) of texts, by the family's own forward pass in padded batches.

    Args:
        model: a sequence classifier in evaluation mode, with its standard attention.
        rows: ids (tokens,) of each.
    """
    can_pad = plain_model(model).config.get_text_config().pad_token_id is not None  # by which the last token is found
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for items in bucket_by_length([len(row) for row in rows], TOKENS if can_pad else 1):
        ids, mask = padded(plain_model(model), [rows[item] for item in items])
        for item, logits in zip(items, model(input_ids=ids, attention_mask=mask).logits.float(), strict=True):
            found[item] = logits
    return found


def _without(message: Message, tokens: Sequence[str]) -> Message:
    """The turn without control tokens, also without those that appear when another one is left out."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    while any(token and token in content for token in tokens):
        for token in tokens:
            content = content.replace(token, "")
    return {**message, "content": content}
