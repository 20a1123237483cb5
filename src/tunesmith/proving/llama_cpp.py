"""A GGUF file in llama.cpp: the chat template and the answers by its server, ids and log-probabilities by its library.

The server reports log-probabilities only of tokens that it has written. So the library is called for those of given
tokens, through llama.cpp's C interface (llama.h), which the package xllamacpp's shared library exports.
"""

import ctypes
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.example import Message
from tunesmith.data.template import Tools
from tunesmith.errors import UserError
from tunesmith.evaluation.llama_server import server_of
from tunesmith.exporting.gguf_quantizer import library_file, require_llama_cpp
from tunesmith.inference.openai_client import error_message
from tunesmith.models.gguf_file import read_gguf
from tunesmith.proving.http import as_protocol
from tunesmith.proving.limits import kind_of
from tunesmith.proving.material import Row
from tunesmith.proving.reader import Agreement, agreement


class LlamaCpp:
    """A GGUF file.

    Args:
        file: the model.
        context: the most tokens of a text with its answer.

    Raises:
        UserError: xllamacpp is not installed, or llama.cpp cannot load the file.
    """

    program: ClassVar[str] = "llama.cpp"
    unchecked: Sequence[str] = ()

    def __init__(self, file: Path, context: int) -> None:
        require_llama_cpp(f"Reading {file}")
        self.kind = kind_of(read_gguf(file).bits_per_weight)
        self._file, self._context = file, context
        self._library = _Library(file, context)

    @cached_property
    def _server(self) -> Any:
        return server_of(self._file, self._context, torch.get_num_threads())

    def _prompt(self, messages: Sequence[Message], tools: Tools) -> str:
        """The text that llama.cpp renders."""
        body: dict[str, Any] = {"messages": as_protocol(messages)} | ({"tools": list(tools)} if tools else {})
        request = urllib.request.Request(
            f"{self._server.listening_address}/apply-template",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return str(json.load(reply)["prompt"])
        except urllib.error.HTTPError as error:
            raise UserError(
                f"llama.cpp cannot render a chat with {self._file}: {error_message(error.read())}"
            ) from None

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        return self._library.ids(self._prompt(messages, tools), parse_special=True)

    def text_ids(self, text: str) -> list[int]:
        return self._library.ids(text, parse_special=False)

    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        return agreement(first, self._library.logits(row.ids, row.marks - 1), row.ids[row.marks])

    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        settings = {"max_tokens": max_new_tokens, "temperature": 0.0, "cache_prompt": False}  # a cache changes rounding
        bodies = ({"prompt": self._prompt(chat, None), **settings} for chat in chats)
        return [str(self._server.handle_completions(body)["choices"][0]["text"]).strip() for body in bodies]

    def close(self) -> None:
        self._library.close()
        self.__dict__.pop("_server", None)


class _Params(ctypes.Structure):
    """llama_model_params and llama_context_params, of which only the first numbers are looked at.

    Both are larger than 16 bytes, and are returned and passed in memory. So the room for one may be larger than it is.
    """

    _fields_ = (("first", ctypes.c_uint32 * 4), ("rest", ctypes.c_char * 1008))


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_LOG, _POINTER]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (_POINTER, [ctypes.c_char_p, _Params]),
    "llama_init_from_model": (_POINTER, [_POINTER, _Params]),
    "llama_n_batch": (ctypes.c_uint32, [_POINTER]),
    "llama_set_n_threads": (None, [_POINTER, _INT, _INT]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
    "llama_tokenize": (
        _INT,
        [_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_batch_init": (_Batch, [_INT, _INT, _INT]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (_INT, [_POINTER, _Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [_POINTER, _INT]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_memory_clear": (None, [_POINTER, ctypes.c_bool]),
    "llama_free": (None, [_POINTER]),
    "llama_model_free": (None, [_POINTER]),
}


_ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""

_errors: list[str] = []
"""What llama.cpp logged as errors while it loaded the last model."""


def _log(level: int, text: bytes, data: Any) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


_logged = _LOG(_log)


@cache
def _llama_h() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_file()))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_logged, None)
    library.llama_backend_init()
    return library


class _Library:
    """llama.h on one model."""

    def __init__(self, file: Path, context: int) -> None:
        self._c = _llama_h()
        _errors.clear()
        self._model = self._c.llama_model_load_from_file(str(file).encode(), self._c.llama_model_default_params())
        if not self._model:
            raise UserError(f"llama.cpp cannot load {file}: {_errors[0] if _errors else 'it does not say why'}")
        params = self._c.llama_context_default_params()
        params.first[0] = params.first[1] = context  # n_ctx, n_batch
        self._context = self._c.llama_init_from_model(self._model, params)
        if not self._context or self._c.llama_n_batch(self._context) != context:
            raise UserError(
                f"This version of xllamacpp has another interface than llama.cpp's known ones. Install the one that "
                f"Tunesmith was tested with, to compare {file}: pip install 'tunesmith[gguf]'"
            )
        self._c.llama_set_n_threads(self._context, *[torch.get_num_threads()] * 2)
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self._batch = self._c.llama_batch_init(context, 0, 1)
        self._most = context

    def ids(self, text: str, parse_special: bool) -> list[int]:
        """The ids, with the tokens that llama.cpp puts around a text.

        Args:
            text: to tokenize.
            parse_special: whether special tokens in it are read as such.
        """
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self._c.llama_tokenize(self._vocab, data, len(data), room, len(room), True, parse_special)
        return list(room[:count])

    def logits(self, ids: NDArray[np.int32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """(positions, vocabulary) the scores of the next token after each position, with the ids up to it before it."""
        assert len(ids) <= self._most
        batch = self._batch
        batch.n_tokens = len(ids)
        wanted = np.zeros(len(ids), np.int8)
        wanted[positions] = 1
        for index, token in enumerate(ids.tolist()):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = wanted[index]
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        failed = self._c.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        vocabulary = self._c.llama_vocab_n_tokens(self._vocab)
        return np.stack(
            [
                np.ctypeslib.as_array(self._c.llama_get_logits_ith(self._context, int(position)), (vocabulary,)).copy()
                for position in positions
            ]
        )

    def close(self) -> None:
        self._c.llama_batch_free(self._batch)
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)
