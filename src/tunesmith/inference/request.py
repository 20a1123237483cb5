"""A request to an engine: a text to continue or to score, and its answer; and how an engine answers several."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tunesmith.errors import UserError
from tunesmith.inference.constraint import Constraint
from tunesmith.inference.drafts import Drafter
from tunesmith.inference.sampling import Sampling, refuse_wrong

FinishReason = Literal["stop", "length", "cancelled"]

Alternatives = tuple[tuple[int, float], ...]
"""Tokens and their log p in nats, the most likely first."""


@dataclass(eq=False)
class Request:
    """A text to continue, or to score.

    Attributes:
        prompt: its token ids.
        sampling: how tokens are chosen.
        stops: ids that end the answer.
        number: of the request among those with the same seed; each has its own random numbers.
        adapter: the name of an adapter; None: the model as it is.
        completion: with it, nothing is generated: these tokens are scored as the answer.
        constraint: on the answer's tokens.
        drafter: guesses the answer's next tokens, so that several are computed at once; None: no guesses.
        on_token: called with each token of the answer; returns whether the answer ends with it.
        tokens: the answer so far.
        log_probabilities: log p of each of its tokens by the model itself, without temperature, in nats.
        alternatives: with `top_logprobs`, the most likely tokens in place of each of its tokens, with log p.
        end: the token that ended the answer, with its log p; None: it ended otherwise, or has not.
        finish: why the answer ended; None as long as it has not.
        exception: why it could not be answered; it is cancelled then.
        on_cancel: set by the engine that has the request in its queue; called when it is cancelled.
        cached_tokens: how many of the prompt's tokens were in the cache.
        first_token_seconds: from `submitted` to the first token.
        submitted: when the request was made.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    number: int = 0
    adapter: str | None = None
    completion: Sequence[int] | None = None
    constraint: Constraint | None = None
    drafter: Drafter | None = None
    on_token: Callable[[int], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    end: tuple[int, float] | None = None
    finish: FinishReason | None = None
    exception: Exception | None = None
    on_cancel: "Callable[[Request], None] | None" = field(default=None, init=False, repr=False)
    cached_tokens: int = 0
    first_token_seconds: float | None = None
    submitted: float = field(default_factory=time.perf_counter)

    def take(self, token: int, log_probability: float) -> bool:
        """Take the next token, which may end the answer.

        Args:
            token: its id.
            log_probability: by the model itself, in nats.

        Returns:
            Whether it is part of the answer: a stop token is not.
        """
        if token in self.stops:
            self.finish, self.end = "stop", (token, log_probability)
            return False
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)
        complete = self.constraint is not None and self.constraint.add(token)
        if (self.on_token is not None and self.on_token(token)) or complete:
            self.finish = self.finish or "stop"
        return True

    def refuse_wrong(self, room: int | None, vocabulary: int) -> None:
        """Refuse what no model of that context and vocabulary can answer.

        Args:
            room: the most tokens of prompt and answer; None: no limit.
            vocabulary: how many tokens the model scores.

        Raises:
            UserError: the text is too long, or a setting cannot be followed.
        """
        length = len(self.prompt) + len(self.completion or ())
        if room is not None and length >= room + 2 * (self.completion is not None):  # the last token is only scored
            raise UserError(f"The chat has {length:,} tokens, and the model's context holds {room:,}. Shorten it.")
        refuse_wrong(self.sampling, vocabulary)

    def cancel(self, exception: Exception | None = None) -> None:
        """End the request; its room is free after the next step.

        Args:
            exception: why it could not be answered.
        """
        self.exception = self.exception or exception
        if self.finish is None:
            self.finish = "cancelled"
            if self.on_cancel is not None:
                self.on_cancel(self)


class Runs(Protocol):
    """What answers requests step by step."""

    @property
    def is_idle(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    def submit(self, request: Request) -> None: ...
    def step(self) -> list[Request]: ...
    def abandon(self, exception: Exception) -> None: ...


def run_all(engine: Runs, requests: Sequence[Request], done: Callable[[int], None]) -> None:
    """Submit the requests, and step until all have ended. Arguments are those of `Engine.run`.

    Raises:
        Exception: why a request could not be submitted or answered.
    """
    finished = 0
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        ended = engine.step()
        for request in ended:
            if request.exception is not None:
                raise request.exception
        if ended:
            finished += len(ended)
            done(finished)
