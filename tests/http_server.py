"""A server on a free port of this machine, for the length of a block."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]

Reply = Callable[[str, Message, Body | None], tuple[int, Any]]
"""From a request's path, headers and body (None: a GET) to the status, and the content as bytes or JSON values."""


class _Http(ThreadingHTTPServer):
    request_queue_size = 128  # as many as connect at once
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Nothing: the client gave up."""


@contextmanager
def http_server(reply: Reply) -> Iterator[str]:
    """Serve as long as the block lasts. Yields the address, without a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: Body | None) -> None:
            status, content = reply(self.path, self.headers, body)
            encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with _Http(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))  # how often it looks whether it is to end
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join(60)
