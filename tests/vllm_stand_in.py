"""A server that speaks as vLLM's does where it differs from ours, and answers from our own; and one that misbehaves."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class StandIn:
    """What stands in for vLLM before a server of ours.

    Attributes:
        behind: the address of our server.
        change_request: the body of a request for completions that our server gets.
        change_choice: a choice that the client gets.
        loaded: the names of the adapters that it has.
        loads: of those that it was to load, in order.
        bodies: of the requests for completions.
        address: its own.
    """

    behind: str
    change_request: Callable[[Body], Body] = lambda body: body
    change_choice: Callable[[Body], Body] = lambda choice: choice
    loaded: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    address: str = ""

    def reply(self, path: str, body: Body | None) -> tuple[int, str, bytes]:
        """Status, type and content of a reply."""
        if path == "/v1/load_lora_adapter" and body is not None:
            name = body["lora_name"]
            if name in self.loaded:
                return self._error(400, f"The lora adapter '{name}' has already been loaded.")
            self.loaded.add(name)
            self.loads.append(name)
        if path == "/v1/unload_lora_adapter" and body is not None:
            self.loaded.discard(body["lora_name"])
        if path == "/v1/completions" and body is not None:
            self.bodies.append(body)
            body = self.change_request(dict(body))
        status, kind, content = self._forward(path, body)
        if path == "/v1/completions" and status == 200:
            answer = json.loads(content)
            answer["choices"] = [self.change_choice(choice) for choice in answer["choices"]]
            content = json.dumps(answer).encode()
        return status, kind, content

    def _forward(self, path: str, body: Body | None) -> tuple[int, str, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.behind + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.headers["Content-Type"], reply.read()
        except urllib.error.HTTPError as error:
            return error.code, "application/json", error.read()

    def _error(self, status: int, message: str) -> tuple[int, str, bytes]:
        """As vLLM's ErrorResponse is."""
        content = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
        return status, "application/json", json.dumps(content).encode()


@contextmanager
def standing_in(behind: str, **changes: Any) -> Iterator[StandIn]:
    """Run a stand-in on a free port of this machine. Arguments are those of `StandIn`."""
    stand_in = StandIn(behind, **changes)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Body | None) -> None:
            status, kind, content = stand_in.reply(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
