"""`tunesmith serve`: a model behind OpenAI's protocol."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import UserError
from tunesmith.serving.app import application
from tunesmith.serving.guards import is_loopback
from tunesmith.serving.load import ServiceOptions, load_service
from tunesmith.serving.service import Service

HEADER_SECONDS = 15.0
"""Within which a client has to send the head of a request."""

DRAIN_SECONDS = 120
"""How long answers that have begun may take after the server was asked to stop."""

MOST_CONNECTIONS = 2000


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tls_certificate: str | Path | None = None,
    tls_key: str | Path | None = None,
    ready: Callable[[str], None] = print,
    **options: Unpack[ServiceOptions],
) -> None:
    """Serve a model until the process is asked to stop (SIGINT or SIGTERM); answers that have begun are completed.

    Args:
        model: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        host: the address to listen on. Any other than this machine's own needs `api_key_file`.
        port: 0: a free one.
        tls_certificate: a PEM file; with it, HTTPS.
        tls_key: the certificate's private key.
        ready: called with the address once it answers.
        options: the other arguments of `tunesmith.serving.load.load_service`, such as `adapters` and `api_key_file`.

    Raises:
        UserError: the model or an adapter cannot be loaded, the address cannot be used, or it needs keys.
    """
    if options.get("api_key_file") is None and not is_loopback(host):
        raise UserError(
            f"host {host} can be reached from other machines, so clients need a key. Make one with: tunesmith keys add "
            "keys.json NAME, and give --api-key-file keys.json."
        )
    with listen(host, port) as listener:
        Server(load_service(model, **options), listener, tls_certificate, tls_key).run(ready)


def listen(host: str, port: int) -> socket.socket:
    """A socket for a server.

    Args:
        host: the address.
        port: 0: a free one.

    Raises:
        UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be used: {error.strerror}. Choose another --host or --port.") from None


class Server:
    """Answers requests for a service.

    Args:
        service: the model, and how it is served.
        listener: the socket.
        tls_certificate: a PEM file; with it, HTTPS.
        tls_key: the certificate's private key.
    """

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        tls_certificate: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        self._listener = listener
        host, port = listener.getsockname()[:2]
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.address = f"{'http' if tls_certificate is None else 'https'}://{authority}"
        config = uvicorn.Config(
            application(service, only_loopback=is_loopback(host) and service.keys.are_none),
            http=_PromptProtocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=DRAIN_SECONDS, proxy_headers=False,
            ssl_certfile=tls_certificate, ssl_keyfile=tls_key,
        )  # fmt: skip
        try:
            config.load()
        except (OSError, ValueError) as error:  # ssl's errors are of these kinds
            raise UserError(f"{tls_certificate} and {tls_key or 'no key'} cannot be used for TLS: {error}") from None
        self._uvicorn = _Uvicorn(config)

    def run(self, ready: Callable[[str], None] = lambda address: None) -> None:
        """Answer requests until `stop`, SIGINT or SIGTERM; answers that have begun are completed.

        Args:
            ready: called with the address once requests are answered.
        """
        self._uvicorn.ready = lambda: ready(self.address)
        with _signals_end_normally():
            self._uvicorn.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take no further requests, and end `run` once the answers that have begun are complete."""
        self._uvicorn.should_exit = True


@contextmanager
def _signals_end_normally() -> Iterator[None]:
    """After it has stopped in an orderly way, uvicorn raises the signal that asked for it once more, for the handler
    that was there before: let that be one that does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda number, frame: None) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which says when it is ready."""

    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


class _PromptProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes a connection whose request's head does not come in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
