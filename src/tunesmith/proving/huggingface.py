"""A model directory in transformers, as its users load it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.example import Message
from tunesmith.data.template import Tools
from tunesmith.models.precision import device_of
from tunesmith.models.quiet import no_progress_bars, no_warnings
from tunesmith.proving.limits import EIGHT_BITS, EXACT, FOUR_BITS, Kind
from tunesmith.proving.material import Row
from tunesmith.proving.reader import Agreement, agreement

AT_ONCE = 8
"""Answers that are written at the same time."""


class HuggingFace:
    """A model directory, in fp32 if its weights are not quantized.

    Args:
        directory: with transformers' files.
        device: to compute on.
    """

    program: ClassVar[str] = "transformers"
    unchecked: Sequence[str] = ()

    def __init__(self, directory: Path, device: str = "auto") -> None:
        quantization = getattr(AutoConfig.from_pretrained(directory), "quantization_config", None)
        logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it warns of each product on a CPU
        self.kind: Kind = EXACT if quantization is None else _kind(dict(quantization))
        self._device = device_of(device)
        dtype = torch.float32 if quantization is None else "auto"
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        with no_progress_bars(), no_warnings():
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self._model = model.to(self._device).eval()

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            list(messages), tools=None if tools is None else list(tools), add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    @torch.no_grad()
    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None].to(self._device)
        logits = self._model(input_ids=ids).logits[0, row.marks - 1].float()
        return agreement(first, logits.cpu().numpy(), row.ids[row.marks])

    @torch.no_grad()
    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(chats), AT_ONCE):
            texts += self._batch([self.chat_ids(chat, None) for chat in chats[start : start + AT_ONCE]], max_new_tokens)
        return texts

    def _batch(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=self._device)
        pad = self._tokenizer.pad_token_id
        written = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._tokenizer.eos_token_id if pad is None else pad,
        )
        texts: list[str] = self._tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def close(self) -> None:
        del self._model


def _kind(quantization: dict[str, Any]) -> Kind:
    return EIGHT_BITS if quantization.get("load_in_8bit") else FOUR_BITS
