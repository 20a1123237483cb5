"""A real server with OpenAI's protocol whose replies are a function of what it is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

from http_server import Body, http_server


class RefusedError(Exception):
    """What a reply raises for code 400, with the server's message."""


class Scripted:
    """A running server.

    Attributes:
        url: of its model `wise`, as `tunesmith evaluate` takes it.
        asked: the bodies of all chat requests, in the order of their arrival.
        keys: what their `Authorization` says.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked, self.keys = list[Body](), list[str | None]()


@contextmanager
def scripted(reply: Callable[[Body], str]) -> Iterator[Scripted]:
    """Serve replies as long as the block lasts.

    Args:
        reply: from a request's body to the text of the answer; it may raise `RefusedError`.
    """

    server = Scripted()

    def answer(path: str, headers: Message, body: Body | None) -> tuple[int, Any]:
        if body is None:
            return 501, {"error": {"message": "only POST"}}
        server.asked.append(body)
        server.keys.append(headers["Authorization"])
        try:
            message = {"role": "assistant", "content": reply(body)}
        except RefusedError as refused:
            return 400, {"error": {"message": str(refused)}}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}

    with http_server(answer) as address:
        server.url = f"{address}/v1#wise"
        yield server
