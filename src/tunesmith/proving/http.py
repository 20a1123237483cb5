"""A served model, through OpenAI's protocol: `tunesmith serve`, llama.cpp's server, vLLM.

The protocol gives neither ids nor full distributions. What is compared: how many tokens a chat has (`usage`), and at
each position the texts of the most likely tokens with their log-probabilities, everything else taken together. That KL
is at most the full one (the data-processing inequality). Tokens that share a text, as parts of characters do, are among
everything else. A `logit_bias`, which OpenAI's definition of log-probabilities leaves out, makes the server write a
given token, so that its log-probability is reported.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.data.example import Message
from tunesmith.data.reasoning import with_reasoning
from tunesmith.data.template import Tools
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.proving.limits import EIGHT_BITS, Kind
from tunesmith.proving.material import Row
from tunesmith.proving.reader import Agreement, total

PLACES = 8
"""Places of each row that are compared, evenly spaced: each is a request."""

TOP = 20
"""Most likely tokens that a server reports at each position: OpenAI's limit of chats."""


class Served:
    """A served model.

    Args:
        client: of the server.
        tokenizer: of the model that it is compared with.
    """

    program: ClassVar[str] = "the server"
    kind: Kind = EIGHT_BITS
    unchecked: Sequence[str] = (
        "token ids: the protocol reports only how many a chat has, which was compared",
        "where answers end: the protocol reports no log-probability of the token that ends one",
        f"divergence: only the {TOP} most likely tokens are reported, so it is a lower bound",
    )

    def __init__(self, client: OpenAIClient, tokenizer: PreTrainedTokenizerBase) -> None:
        self._client, self._tokenizer = client, tokenizer

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each text that is one token's only. Parts of characters all have the same text."""
        texts = [str(self._tokenizer.decode([id])) for id in range(len(self._tokenizer))]
        counts = Counter(texts)
        return {text: id for id, text in enumerate(texts) if counts[text] == 1}

    @cached_property
    def _known(self) -> NDArray[np.int64]:
        """These ids."""
        return np.array(list(self._ids.values()))

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> int:
        given = {"tools": list(tools), "tool_choice": "auto"} if tools else {}
        reply = self._client.call(
            "chat/completions", messages=as_protocol(messages), max_completion_tokens=1, temperature=0, **given
        )
        return int(reply["usage"]["prompt_tokens"])

    def text_ids(self, text: str) -> None:
        """A completion's prompt may have a token that begins a text or not: the protocol leaves that open."""

    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        chosen = np.unique(np.linspace(0, len(row.marks) - 1, min(PLACES, len(row.marks))).round().astype(int))
        found = [self._at(row, int(row.marks[position]), first[position].astype(np.float64)) for position in chosen]
        return total([each for each in found if each is not None])

    def _at(self, row: Row, mark: int, first: NDArray[np.float64]) -> Agreement | None:
        """The agreement at one position; None if the server reports nothing, as where an answer ends."""
        target = int(row.ids[mark])
        reply = self._client.call(
            "completions",
            prompt=row.ids[:mark].tolist(),
            max_tokens=1,
            temperature=0,
            logprobs=TOP,
            logit_bias={str(target): 100},
        )
        logprobs = reply["choices"][0]["logprobs"]
        reported: Mapping[str, float] = logprobs["top_logprobs"][0] if logprobs and logprobs["top_logprobs"] else {}
        second = {self._ids[text]: value for text, value in reported.items() if text in self._ids}
        if not second:
            return None
        return Agreement(
            1,
            int(max(second, key=second.__getitem__) == self._known[first[self._known].argmax()]),
            bucketed_divergence({id: math.exp(first[id]) for id in second}, second),
            (-float(first[target]), -float(logprobs["token_logprobs"][0])),
        )

    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        bodies = (
            {"messages": as_protocol(chat), "max_completion_tokens": max_new_tokens, "temperature": 0} for chat in chats
        )
        replies = (self._client.call("chat/completions", **body) for body in bodies)
        return [_text_of(reply["choices"][0]["message"]) for reply in replies]

    def close(self) -> None:
        pass


def _text_of(message: Mapping[str, Any]) -> str:
    """What the model wrote: its reasoning, which a server may tell apart from the content, and the content."""
    content, reasoning = str(message.get("content") or ""), message.get("reasoning_content")
    return (with_reasoning(content, reasoning) if reasoning else content).strip()


def bucketed_divergence(probabilities: Mapping[int, float], log_probabilities: Mapping[int, float]) -> float:
    """Σ p log(p / q) over some outcomes, and all others as one, in nats.

    Args:
        probabilities: p of each outcome.
        log_probabilities: log q of the same outcomes.
    """
    rest_p = max(0.0, 1 - sum(probabilities.values()))
    rest_q = max(1e-9, 1 - sum(math.exp(each) for each in log_probabilities.values()))
    terms = [p * (math.log(p) - log_probabilities[id]) for id, p in probabilities.items() if p > 0]
    return max(0.0, sum(terms) + (rest_p * math.log(rest_p / rest_q) if rest_p > 0 else 0.0))


def as_protocol(messages: Sequence[Message]) -> list[Message]:
    """Turns in OpenAI's protocol, where the arguments of a tool's call are JSON in a string."""
    return [
        {**turn, "tool_calls": [_as_protocol(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in messages
    ]


def _as_protocol(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
