"""An answer while it is written, and when it is complete."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.inference.request import Alternatives, FinishReason, Request
from tunesmith.inference.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer.

    Attributes:
        text: without the token or the text that ended it.
        tokens: its ids.
        logprobs: log p of each token by the model itself (no temperature, no penalties), in nats.
        finish_reason: `stop`: by a token or text that ends answers; `length`: by the limit; `cancelled`.
        prompt_tokens: the number of tokens before it.
        top_logprobs: if asked for, the most likely tokens in place of each token, with log p.
        cached_tokens: how many of these were in the cache.
        end: the token that ended it, with log p; None: a text, the limit, or nothing did.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    top_logprobs: tuple[Alternatives, ...] = ()
    end: tuple[int, float] | None = None

    @property
    def mean_logprob(self) -> float:
        """The mean of `logprobs`, by which answers of different lengths are compared; −∞ without tokens."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else -math.inf

    def __str__(self) -> str:
        return self.text


class Writing:
    """An answer while it is written.

    Attributes:
        request: to the engine.
        text: the answer so far.
    """

    def __init__(self, request: Request, stream: TextStream, write: Callable[[str], None]) -> None:
        self.request, self._stream, self._write = request, stream, write
        self.text = ""
        request.on_token = self._add

    def _add(self, token: int) -> bool:
        self._emit(self._stream.add(token))
        return self._stream.stopped

    def _emit(self, piece: str) -> None:
        self.text += piece
        if piece:
            self._write(piece)

    def finish(self) -> Generation:
        """The complete answer, once the request has ended.

        Raises:
            Exception: why the request could not be answered; UserError if the user can do something about it.
        """
        if self.request.exception is not None:
            raise self.request.exception
        self._emit(self._stream.finish())
        request = self.request
        return Generation(
            self.text,
            tuple(request.tokens),
            tuple(request.log_probabilities),
            "stop" if self._stream.stopped else request.finish or "cancelled",
            len(request.prompt),
            request.cached_tokens,
            tuple(request.alternatives),
            request.end,
        )
