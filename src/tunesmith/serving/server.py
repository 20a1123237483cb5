"""`tunesmith serve`: a model behind OpenAI's protocol."""

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import UserError
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.sampling import Sampling
from tunesmith.serving.adapters import ServedAdapters
from tunesmith.serving.app import application
from tunesmith.serving.engine_thread import EngineThread
from tunesmith.serving.feedback import Feedback
from tunesmith.serving.keys import Keys, read_keys
from tunesmith.serving.service import Limits, Service

HEADER_SECONDS = 15.0
"""Within which a client has to send the head of a request."""

DRAIN_SECONDS = 120
"""How long answers that have begun may take after the server was told to stop."""

MOST_CONNECTIONS = 2000


def serve(
    model: str,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    adapter_directory: str | Path | None = None,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | Path | None = None,
    tls_certificate: str | Path | None = None,
    tls_key: str | Path | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    concurrent: int = CONCURRENT,
    temperature: float | None = None,
    limits: Limits | None = None,
    feedback: str | Path | None = None,
    log_prompts: bool = False,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model until the process is told to stop (SIGINT or SIGTERM); answers that have begun are completed.

    Args:
        model: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        adapters: runs or adapter directories to serve beside it, by name.
        adapter_directory: with one run or adapter in each subdirectory, served by its name. Read when first asked for,
            and again when the files have changed.
        name: that clients call the model by; None: the last part of `model`.
        host: the address to listen on. Any other than this machine's own needs `api_key_file`.
        port: 0: a free one.
        api_key_file: with keys from `tunesmith keys add`.
        tls_certificate: a PEM file; with it, HTTPS.
        tls_key: the certificate's private key.
        weights: precision of the base's frozen weights: int8, nf4 …; None: as in the run.
        device: `auto`, `cpu`, `cuda`, …
        precision: `auto`, `bf16` or `fp32`.
        concurrent: the most answers at the same time; others wait.
        temperature: for requests without one; None: the model's own default, else 1, as OpenAI's protocol has it.
        limits: on requests; None: `Limits()`.
        feedback: a JSONL file for what `/v1/feedback` receives; None: it is refused.
        log_prompts: whether prompts and answers are in the log.
        ready: called with the address once it answers.

    Raises:
        UserError: the model or an adapter cannot be loaded, the address cannot be used, or it needs keys.
    """
    if api_key_file is None and not is_loopback(host):
        raise UserError(
            f"host {host} can be reached from other machines, so clients need a key. Make one with: tunesmith keys add "
            "keys.json NAME, and give --api-key-file keys.json."
        )
    keys = Keys() if api_key_file is None else Keys(read_keys(Path(api_key_file)))
    with listen(host, port) as listener:
        loaded = Model(model, device, precision, weights, concurrent)
        service = service_of(loaded, name or name_of(model), adapters or {}, adapter_directory, temperature)
        service.keys, service.limits, service.logs_prompts = keys, limits or Limits(), log_prompts
        service.feedback = None if feedback is None else Feedback(Path(feedback))
        Server(service, listener, tls_certificate, tls_key).run(ready)


def service_of(
    model: Model,
    name: str,
    adapters: Mapping[str, str | Path] | None = None,
    adapter_directory: str | Path | None = None,
    temperature: float | None = None,
) -> Service:
    """A model, ready to be served. Arguments are those of `serve`.

    Raises:
        UserError: the model or an adapter cannot be loaded.
    """
    generator = model.generator if "generate" in model.head.commands else None
    default = Sampling(temperature=1.0) if generator is None else _defaults(generator.model.generation_config)
    if temperature is not None:
        default = replace(default, temperature=temperature)
    service = Service(model, name, EngineThread(generator), default=default)
    directory = None if adapter_directory is None else Path(adapter_directory)
    if adapters or directory is not None:
        service.adapters = _adapters(
            service, {each: Path(place) for each, place in (adapters or {}).items()}, directory
        )
    return service


def _adapters(service: Service, given: dict[str, Path], directory: Path | None) -> ServedAdapters:
    service.model.require("generate")
    generator = service.model.generator
    generator.require_base()
    if service.name in given:
        raise UserError(f"The name {service.name} is the model's own. Give the adapter another one.")
    if directory is not None and not directory.is_dir():
        raise UserError(f"{directory} is not a directory.")
    return ServedAdapters(generator.paged.adapters, given, directory)


def _defaults(config: Any) -> Sampling:
    """The sampling that the model's authors recommend in its `generation_config.json`; else OpenAI's, temperature 1."""
    default = Sampling(temperature=1.0)
    if not config.do_sample:
        return default
    found = {
        each: getattr(config, each, None) for each in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    }
    return replace(default, **{each: value for each, value in found.items() if value is not None})


def name_of(model: str) -> str:
    """What clients call a model that is given no other name: the last part of its path, or its whole hub name."""
    path = Path(model)
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else model


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
        self._service, self._listener = service, listener
        host, port = listener.getsockname()[:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.address = f"{'http' if tls_certificate is None else 'https'}://{place}"
        config = uvicorn.Config(
            application(service, only_loopback=is_loopback(host) and service.keys.are_none),
            http=_PromptProtocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
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
        self._service.thread.start()
        with _signals_end_normally():
            self._uvicorn.run(sockets=[self._listener])
        self._service.thread.stop()

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
