"""A server that speaks vLLM's pooling API as vLLM's documentation and source have it, with scores from a function; and
one that misbehaves."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

from http_server import Body, http_server

KNOWN = {"model", "messages", "input", "task", "use_activation", "truncate_prompt_tokens"}
"""Of vLLM's fields, those that are sent."""


class RefusedError(Exception):
    """A refusal, with its status and vLLM's form of an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": {"message": message, "type": "Error", "param": None, "code": status}}


class PoolingServer:
    """A running stand-in with one model, `wise`.

    Attributes:
        url: of that model, as a recipe names it.
        asked: the bodies of requests for scores.
        keys: what their `Authorization` says.
        most: the most requests that it answered at the same time.
    """

    def __init__(self, score: Callable[[Body], Any], seconds: float) -> None:
        self._score, self._seconds = score, seconds
        self._running, self._lock = 0, threading.Lock()
        self.url, self.most = "", 0
        self.asked, self.keys = list[Body](), list[str | None]()

    def reply(self, path: str, body: Body | None) -> Any:
        """The content of a reply.

        Raises:
            RefusedError: there is none.
        """
        if path == "/v1/models" and body is None:
            return {"object": "list", "data": [{"id": "wise"}]}
        if path != "/pooling" or body is None:
            raise RefusedError(404, "Not Found")
        if body["model"] != "wise":
            raise RefusedError(404, f"The model `{body['model']}` does not exist.")
        if body.keys() - KNOWN or body["task"] != "classify" or ("input" in body) == ("messages" in body):
            raise RefusedError(400, "Unsupported task, or a field that vLLM does not know")
        with self._lock:
            self.asked.append(body)
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            time.sleep(self._seconds)
            data = self._score(body)
        finally:
            with self._lock:
                self._running -= 1
        if isinstance(data, float) and body.get("use_activation") is not False:
            data = 1 / (1 + math.exp(-data))
        entries = data if isinstance(data, list) and data and isinstance(data[0], dict) else [{"data": [data]}]
        return {"object": "list", "model": "wise", "data": [{"index": 0, "object": "pooling", **e} for e in entries]}


@contextmanager
def pooling_server(score: Callable[[Body], Any], seconds: float = 0.0) -> Iterator[PoolingServer]:
    """Run a stand-in on a free port of this machine.

    Args:
        score: of a request's body; it may raise `RefusedError`, and return the entries of `data` instead.
        seconds: that each score takes.
    """
    stand_in = PoolingServer(score, seconds)

    def reply(path: str, headers: Message, body: Body | None) -> tuple[int, Any]:
        if body is not None:
            stand_in.keys.append(headers["Authorization"])
        try:
            return 200, stand_in.reply(path, body)
        except RefusedError as refused:
            return refused.status, refused.content

    with http_server(reply) as address:
        stand_in.url = f"{address}/v1#wise"
        yield stand_in
