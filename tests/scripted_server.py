"""A real server with OpenAI's protocol whose replies are a function of what it is asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class RefusedError(Exception):
    """What a reply raises for code 400, with the server's message."""


class Scripted:
    """A running server.

    Attributes:
        url: of its model `wise`, as `tunesmith evaluate` takes it.
        asked: the bodies of all chat requests, in the order of their arrival.
        keys: what their `Authorization` says.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1#wise"
        self.asked, self.keys = list[Body](), list[str | None]()


@contextmanager
def scripted(reply: Callable[[Body], str]) -> Iterator[Scripted]:
    """Serve replies as long as the block lasts.

    Args:
        reply: from a request's body to the text of the answer; it may raise `RefusedError`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            server.keys.append(self.headers["Authorization"])
            try:
                message = {"role": "assistant", "content": reply(body)}
                code, content = 200, {"choices": [{"message": message, "finish_reason": "stop"}]}
            except RefusedError as refused:
                code, content = 400, {"error": {"message": str(refused)}}
            encoded = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Http(ThreadingHTTPServer):
        request_queue_size = 128  # as many as connect at once

    with Http(("127.0.0.1", 0), Handler) as http:
        server = Scripted(http.server_address[1])
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(60)
