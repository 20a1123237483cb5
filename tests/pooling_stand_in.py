"""A server that speaks vLLM's pooling API as vLLM's documentation and source have it, with scores from a function; and
one that misbehaves."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]

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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            stand_in.keys.append(self.headers["Authorization"])
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Body | None) -> None:
            try:
                status, content = 200, stand_in.reply(self.path, body)
            except RefusedError as refused:
                status, content = refused.status, refused.content
            encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Http(ThreadingHTTPServer):
        request_queue_size = 128  # as many as connect at once
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Nothing: the client gave up."""

    with Http(("127.0.0.1", 0), Handler) as http:
        stand_in.url = f"http://127.0.0.1:{http.server_address[1]}/v1#wise"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield stand_in
        finally:
            http.shutdown()
            thread.join(60)
