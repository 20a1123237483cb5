"""A directory of `--to mlx` in mlx-lm, as its users load it."""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Message
from tunesmith.data.template import Tools
from tunesmith.errors import UserError
from tunesmith.proving.limits import Kind, kind_of
from tunesmith.proving.material import Row
from tunesmith.proving.reader import Agreement, agreement

INSTALL = "pip install mlx-lm (on a CPU: 'mlx[cpu]' too)"


def is_installed() -> bool:
    """Whether mlx-lm is."""
    return find_spec("mlx_lm") is not None


def is_mlx(directory: Path) -> bool:
    """Whether a model directory is in mlx-lm's quantized format."""
    file = directory / "config.json"
    return file.exists() and "quantization" in json.loads(file.read_text(encoding="utf-8"))


class Mlx:
    """A model directory.

    Args:
        directory: in mlx-lm's format.

    Raises:
        UserError: mlx-lm is not installed.
    """

    program: ClassVar[str] = "mlx-lm"
    unchecked: Sequence[str] = ()

    def __init__(self, directory: Path) -> None:
        if not is_installed():
            raise UserError(f"Reading {directory} needs mlx-lm. Install it: {INSTALL}")
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))["quantization"]
        self.kind: Kind = kind_of(settings["bits"] + 32 / settings["group_size"])
        self._mlx, self._mx = import_module("mlx_lm"), import_module("mlx.core")
        self._model, self._tokenizer = self._mlx.load(str(directory))

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(
                list(messages), tools=None if tools is None else list(tools), add_generation_prompt=True, tokenize=True,
                return_dict=False,
            )
        )  # fmt: skip

    def text_ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        logits: Any = self._model(self._mx.array(row.ids)[None])[0]
        found = np.array(logits[self._mx.array(row.marks - 1)].astype(self._mx.float32))
        return agreement(first, found, row.ids[row.marks])

    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        prompts = [self.chat_ids(chat, None) for chat in chats]
        return [
            str(self._mlx.generate(self._model, self._tokenizer, prompt, max_tokens=max_new_tokens)).strip()
            for prompt in prompts
        ]

    def close(self) -> None:
        del self._model
