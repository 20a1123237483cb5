"""llama.cpp as the reader of our GGUF files: tokens, rendered chats, log-probabilities, vectors and answers."""

import ctypes
import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp on one thread.

    Args:
        file: the model.
        adapter: a LoRA adapter as a GGUF file.
        embeds: whether to load it as an embedding model.
    """

    def __init__(self, file: Path, adapter: Path | None = None, embeds: bool = False) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = 256
        params.n_parallel = 1
        params.verbosity = -1
        params.warmup = False
        params.embedding = embeds
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(adapter), 1.0
            params.lora_adapters = [lora]
        self._server = xllamacpp.Server(params)
        ctypes.pythonapi.Py_IncRef(
            ctypes.py_object(self._server)
        )  # ended by the process: its destructor may never return

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, with the tokens that begin and end one if `special`."""
        ids: list[int] = self._post("/tokenize", content=text, add_special=special, parse_special=True)["tokens"]
        return ids

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The text that llama.cpp renders."""
        return str(self._post("/apply-template", messages=list(messages))["prompt"])

    def log_probabilities(self, ids: Sequence[int], count: int = 20) -> dict[int, float]:
        """log p of the most likely next tokens.

        They are withheld while the written token is a part of a character, so that a letter is made to be written.
        """
        letter = [[self.tokens("A")[0], 1000.0]]
        reply = self._complete(prompt=list(ids), max_tokens=1, logprobs=count, n_probs=count, logit_bias=letter)
        found = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {each["id"]: each["logprob"] for each in found if math.isfinite(each["logprob"])}

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """The most likely answer in a chat."""
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0}
        return str(self._server.handle_chat_completions(body)["choices"][0]["message"]["content"])

    def vector(self, text: str) -> list[float]:
        """The vector of a text, scaled to length 1."""
        vector: list[float] = self._server.handle_embeddings({"input": text})["data"][0]["embedding"]
        return vector

    def _complete(self, **body: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._server.handle_completions({"temperature": 0.0, "cache_prompt": False, **body})
        return reply

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            content: dict[str, Any] = json.load(reply)
        return content
