"""A model in Tunesmith: a run, an adapter, a model directory or a base, as `tunesmith generate` reads it."""

import gc
from collections.abc import Sequence
from copy import copy
from datetime import datetime
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.data.batch import collate
from tunesmith.data.example import Message, Source
from tunesmith.data.render import Renderer
from tunesmith.data.template import Tools, with_date
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.errors import UserError
from tunesmith.inference.generate import Generator
from tunesmith.inference.model import Model
from tunesmith.inference.sampling import Sampling
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import config_of, kind_of
from tunesmith.models.prompts import plain_model
from tunesmith.proving.limits import EXACT, Kind
from tunesmith.proving.material import Row
from tunesmith.proving.reader import Agreement, agreement


class Trained:
    """A model in Tunesmith, in fp32. Its weights are loaded when they are first used.

    Args:
        name: as `tunesmith.load` takes it.
        device: to compute on.

    Raises:
        UserError: nothing of that name exists, or it does not write text with a decoder.
    """

    program: ClassVar[str] = "Tunesmith"
    kind: Kind = EXACT
    unchecked: Sequence[str] = ()

    def __init__(self, name: str, device: str = "auto") -> None:
        self._model = Model(name, device, "fp32")
        self._model.require("generate")
        if kind_of(config_of(self._model.reference.base)) != "decoder":
            raise UserError(f"{name} is not a decoder. Only decoders that write text are compared.")
        self.renderer = Renderer(self._model.tokenizer)

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        model = self._model.reference.model(self._model.dtype, self._model.device)
        use_document_attention(plain_model(model))
        return model

    @cached_property
    def _today(self) -> Renderer:
        """Renders as other programs do, whose templates write today's date where they write one; in training it is
        always the same."""
        tokenizer = self._model.tokenizer
        if not isinstance(tokenizer.chat_template, str) or "strftime_now" not in tokenizer.chat_template:
            return self.renderer
        dated = copy(tokenizer)
        dated.chat_template = with_date(tokenizer.chat_template, datetime.now())
        return Renderer(dated)

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        text = self._today.prompt(messages, tools)
        return list(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text_ids(self, text: str) -> list[int]:
        own = self._model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*self.renderer.bos_of_document, *own]

    @torch.no_grad()
    def log_probabilities(self, row: Row) -> NDArray[np.float32]:
        """(marks, vocabulary) log p of the next token before each mark."""
        mask = np.zeros(len(row.ids), np.bool_)
        mask[row.marks] = True
        batch = collate(TokenTable.build([(row.ids, mask, Source("", 1))]), [0], self._model.device)
        found: NDArray[np.float32] = self._model.head.log_probabilities(self._loaded, batch).cpu().numpy()
        return found

    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        return agreement(first, self.log_probabilities(row), row.ids[row.marks])

    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        model = self._model
        generator = Generator.of(
            model.reference, model.dtype, model.device, loaded=self._loaded, tokenizer=model.tokenizer
        )
        return generator.answers(chats, Sampling(max_new_tokens))

    def close(self) -> None:
        self.__dict__.pop("_loaded", None)
        gc.collect()
        release_freed_memory()  # the other model may use the memory of its file
