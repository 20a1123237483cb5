"""One answer in the words of OpenAI's protocol: its content, its tool calls, its log-probabilities, why it ended."""

import json
import uuid
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.inference.reasoning_text import ReasoningText
from tunesmith.inference.tool_calls import ToolCall, ToolText
from tunesmith.inference.writing import Generation
from tunesmith.serving.engine_thread import Piece

BYTE_LEVEL = {
    chr(character): byte
    for byte, character in zip(
        sorted(range(256), key=lambda byte: not (33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255)),
        [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)],
        strict=True,
    )
}
"""The byte that each character of a byte-level token stands for (Radford et al. 2019, `bytes_to_unicode`)."""


class TokenTexts:
    """The text and the bytes of single tokens.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def of(self, token: int) -> tuple[str, list[int]]:
        """The token's text, and its bytes: a character's bytes may be in several tokens."""
        if token not in self._known:
            once, twice = (str(self._tokenizer.decode([token] * times)) for times in (1, 2))
            text = twice[len(once) :]  # with the space that some tokenizers leave out at the beginning
            own = list(text.encode())
            if "\ufffd" in text:
                name = str(self._tokenizer.convert_ids_to_tokens(token))
                own = [int(name[3:5], 16)] if name.startswith("<0x") else [BYTE_LEVEL[each] for each in name]
            self._known[token] = text, own
        return self._known[token]

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token with its log-probability."""
        text, own = self.of(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": own}

    def until(self, text: str, tokens: Sequence[int]) -> int:
        """How many of the tokens there are up to the end of that text's first occurrence; all if there is none."""
        decode = self._tokenizer.decode
        return min(
            bisect_left(range(len(tokens) + 1), True, key=lambda count: text in str(decode(tokens[:count]))),
            len(tokens),
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece adds to an answer.

    Attributes:
        reasoning: new text of the reasoning, which may be empty.
        content: new text of the content, which may be empty.
        calls: new tool calls as `{index, id, type, function}`.
        logprobs: of the new tokens, as `/v1/chat/completions` has them.
    """

    reasoning: str
    content: str
    calls: Sequence[dict[str, Any]] = ()
    logprobs: Sequence[dict[str, Any]] = ()

    @property
    def has_something(self) -> bool:
        return bool(self.reasoning or self.content or self.calls or self.logprobs)


class Choice:
    """One answer of a chat, piece by piece. What a stream sends and what is sent at once are the same deltas.

    Args:
        reasoning: finds the reasoning; None: there is none.
        tools: finds tool calls; None: there are no tools.
        texts: of tokens.
        with_logprobs: whether log-probabilities are asked for.
    """

    def __init__(
        self, reasoning: ReasoningText | None, tools: ToolText | None, texts: TokenTexts, with_logprobs: bool
    ) -> None:
        self._reasoning, self._tools, self._texts, self._with = reasoning, tools, texts, with_logprobs
        self.reasoning = self.content = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.finish_reason: str | None = None
        self.reasoning_tokens = 0

    def take(self, piece: Piece) -> Delta:
        """The next piece."""
        reasoning, content = ("", piece.text) if self._reasoning is None else self._reasoning.add(piece.text)
        if isinstance(piece.end, Generation) and self._reasoning is not None:
            reasoning_rest, content_rest = self._reasoning.finish()
            reasoning, content = reasoning + reasoning_rest, content + content_rest
        if self._tools is not None:
            content = self._tools.add(content)
        calls = list[ToolCall]()
        if isinstance(piece.end, Generation):
            if self._tools is not None:
                rest, calls = self._tools.finish()
                content += rest
            self.finish_reason = "tool_calls" if calls else piece.end.finish_reason
        delta = Delta(
            reasoning, content, [_call(index, call) for index, call in enumerate(calls)], self._entries(piece)
        )
        self.reasoning += delta.reasoning
        self.content += delta.content
        self.calls += delta.calls
        self.logprobs += delta.logprobs
        if isinstance(piece.end, Generation) and self._reasoning is not None and self.reasoning:
            self.reasoning_tokens = self._texts.until(self._reasoning.form.end, piece.end.tokens)
        return delta

    def _entries(self, piece: Piece) -> list[dict[str, Any]]:
        if not self._with:
            return []
        tops = piece.top_logprobs or [()] * len(piece.tokens)
        return [
            {**self._texts.entry(token, logprob), "top_logprobs": [self._texts.entry(*each) for each in top]}
            for token, logprob, top in zip(piece.tokens, piece.logprobs, tops, strict=True)
        ]

    @property
    def message(self) -> dict[str, Any]:
        """The whole answer."""
        calls = [{key: value for key, value in call.items() if key != "index"} for call in self.calls]
        content = self.content or (None if calls else "")
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        others = {"tool_calls": calls} if calls else {}
        return {"role": "assistant", "content": content, "refusal": None, **reasoning, **others}


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
