"""`/pooling`: what a reward model says of answers, as vLLM's clients ask for it."""

import queue
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.data.template import UnusableError
from tunesmith.data.turns import MalformedRowError, turns_of
from tunesmith.inference.rating import Ids, Rater
from tunesmith.serving.bodies import Body, Texts
from tunesmith.serving.errors import ApiError
from tunesmith.serving.service import Service, about, reserve, unless_gone

MOST = 64
"""Chats after which no others are taken into a batch."""


class PoolingBody(Body):
    """Of `/pooling`, as vLLM has it: a chat whose last turn is rated, or texts that a template rendered.

    Attributes:
        task, use_activation, encoding_format, add_generation_prompt: may say what is done anyway.
        truncate_prompt_tokens: −1 truncates to the model's context what is longer; None: it is refused.
        add_special_tokens: whether the tokenizer adds its own to a text, by default, and to a chat, never.
    """

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)] | None = None
    input: Texts | None = None
    task: Literal["classify"] | None = None
    use_activation: Literal[False] | None = None
    encoding_format: Literal["float"] | None = None
    truncate_prompt_tokens: Literal[-1] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: Literal[False] | None = None
    user: str | None = None

    def refuse_contradictions(self) -> None:
        """Refuse fields that do not go together.

        Raises:
            ApiError: there are two things to rate, or none; or control tokens would be added to a chat, which has them.
        """
        if (self.messages is None) == (self.input is None):
            raise ApiError(400, "Give either messages or input.", "messages")
        if self.messages is not None and self.add_special_tokens:
            message = "A chat has the control tokens of its template. Leave add_special_tokens out."
            raise ApiError(400, message, "add_special_tokens")


@dataclass(eq=False)
class Group:
    """Chats of a request.

    Attributes:
        rows: the tokens of each.
        scores: their rewards, once they are known.
        error: why there are none.
    """

    rows: Sequence[Ids]
    scores: list[float] = field(default_factory=list)
    error: Exception | None = None


class Ratings:
    """Rates chats. Those that are asked for at the same time are computed in one batch, since a request has only one.

    Args:
        service: of the reward model.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._rater = service, Rater(service.model)
        self._waiting: queue.SimpleQueue[Group] = queue.SimpleQueue()

    async def __call__(self, request: Request) -> Response:
        """`/pooling`."""
        service = self._service
        body, target = await service.asked(request, PoolingBody)
        service.refuse_full(1)
        rows = await service.prepare(partial(self._rows, body))
        tokens = sum(map(len, rows))
        reserve(target.client, tokens)
        scores = await unless_gone(request, self._scores(rows))
        service.metrics.prompt_tokens.labels(target.model).inc(tokens)
        data = [{"index": index, "object": "pooling", "data": [score]} for index, score in enumerate(scores)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({**about(target, "pool", "list"), "data": data, "usage": usage})

    def _rows(self, body: PoolingBody) -> list[Ids]:
        """The tokens of each chat or text.

        Raises:
            ApiError: one is empty, too long, or cannot be rendered.
        """
        body.refuse_contradictions()
        if body.input is not None:
            texts = [body.input] if isinstance(body.input, str) else body.input
            special = body.add_special_tokens is not False
            return [self._fitting(self._rater.text_ids(each, special), body, "input") for each in texts]
        try:
            turns = turns_of(body.messages, "messages")
            if turns[-1]["role"] != "assistant":
                raise MalformedRowError("messages must end with the answer, a turn of the assistant")
            return [self._fitting(self._rater.ids(turns), body, "messages")]
        except (MalformedRowError, UnusableError) as error:
            raise ApiError(400, f"{error}.", "messages", "invalid_messages") from None

    def _fitting(self, ids: Ids, body: PoolingBody, name: str) -> Ids:
        room = self._rater.room
        if not len(ids):
            raise ApiError(400, f"{name} is empty. Give it some text.", name)
        if room is not None and len(ids) > room and body.truncate_prompt_tokens is None:
            message = f"{name} has {len(ids):,} tokens, and the model reads at most {room:,}. Shorten it, or set "
            raise ApiError(400, f"{message}truncate_prompt_tokens: -1.", name, "context_length_exceeded")
        return self._rater.truncated(ids)

    async def _scores(self, rows: Sequence[Ids]) -> list[float]:
        """Their rewards."""
        scores: list[float] = []
        for start in range(0, len(rows), MOST):
            group = Group(rows[start : start + MOST])
            self._waiting.put(group)
            await self._service.thread.call(self._compute)  # there are as many calls as groups, so it is done now
            if group.error is not None:
                raise group.error
            scores += group.scores
        return scores

    def _compute(self) -> None:
        """Rate at least the first group that waits, unless an earlier call did. On the engine's thread."""
        groups: list[Group] = []
        with suppress(queue.Empty):
            while sum(len(group.rows) for group in groups) < MOST:
                groups.append(self._waiting.get_nowait())
        try:
            scores = iter(self._rater.scores([ids for group in groups for ids in group.rows]) if groups else ())
        except Exception as error:
            for group in groups:
                group.error = error
            return
        for group in groups:
            group.scores = list(islice(scores, len(group.rows)))
