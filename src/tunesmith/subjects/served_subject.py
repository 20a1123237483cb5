"""A model under evaluation that is behind a URL."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient, RefusedError
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.subjects.subject import Answer, Chat, Timing

BAD_REQUEST = 400
"""The code of a server that does not know a field, or does not take its value."""


class ServedSubject:
    """A served model, through OpenAI's protocol. Its answers are kept only as long as this object.

    Args:
        name: its column in the tables.
        client: of the server.
        concurrent: the most requests at the same time.

    Attributes:
        refused_schema: why the server refuses to follow a JSON schema; None: it never did. It is not asked to again.
    """

    identity: str | None = None
    scores_texts = False
    model: Model | None = None

    def __init__(self, name: str, client: OpenAIClient, concurrent: int) -> None:
        self.name, self.client, self._concurrent = name, client, concurrent
        self.refused_schema: str | None = None

    def uncached(self) -> "ServedSubject":
        """Itself: nothing of a server is kept."""
        return self

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """As `Subject.answers`.

        Raises:
            UserError: the server does not answer, or refuses.
        """
        with ThreadPoolExecutor(self._concurrent) as pool:
            waiting = [pool.submit(self._answer, chat, sampling, number) for number, chat in enumerate(chats)]
            try:
                for count, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    if done is not None:
                        done(count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in waiting]

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        """Raises:
        UserError: always: the protocol has no log-probabilities of given texts.
        """
        raise UserError(f"{self.name} is a server, and OpenAI's protocol reports no log-probabilities of given texts.")

    def timings(self, chats: Sequence[Chat], sampling: Sampling, concurrent: int) -> list[Timing]:
        """As `Subject.timings`.

        Raises:
            UserError: the server does not answer, or refuses.
        """
        with ThreadPoolExecutor(concurrent) as pool:
            return list(pool.map(lambda chat: self._timing(chat, sampling), chats))

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, chat: Chat, sampling: Sampling, number: int) -> Answer:
        reply = self._reply(_body(chat, sampling, number))
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        text = str(choice["message"].get("content") or "").strip()
        return Answer(text, usage.get("completion_tokens"), choice.get("finish_reason"))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's reply; without a schema, if it answers only without one."""
        free = {name: value for name, value in body.items() if name != "response_format"}
        if self.refused_schema is not None or len(free) == len(body):
            return self.client.call("chat/completions", **free)
        try:
            return self.client.call("chat/completions", **body)
        except RefusedError as error:
            if error.code != BAD_REQUEST:
                raise
            reply = self.client.call("chat/completions", **free)
            self.refused_schema = error.why
            return reply

    def _timing(self, chat: Chat, sampling: Sampling) -> Timing:
        self.client.model  # noqa: B018  # asked for once, before the clock starts
        started = time.perf_counter()
        first, pieces, usage = None, 0, dict[str, int]()
        for event in self.client.events(
            "chat/completions", **_body(chat, sampling, 0), stream_options={"include_usage": True}
        ):
            delta = event["choices"][0].get("delta", {}) if event.get("choices") else {}
            if delta.get("content") or delta.get("reasoning_content"):
                first = first or time.perf_counter() - started
                pieces += 1
            usage = event.get("usage") or usage
        total = time.perf_counter() - started
        return Timing(first or total, total, usage.get("completion_tokens", pieces), usage.get("prompt_tokens"))


def _body(chat: Chat, sampling: Sampling, number: int) -> dict[str, Any]:
    """A request's fields. Those that not every server knows are sent only if they are asked for."""
    body: dict[str, Any] = {
        "messages": list(chat),
        "max_completion_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.temperature:
        body |= {"top_p": sampling.top_p, "seed": sampling.seed + number}
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.schema is not None:
        schema = {"name": "reply", "schema": json.loads(sampling.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body
