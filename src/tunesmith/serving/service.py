"""What all endpoints share: who asks, for which model, with what body."""

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from tunesmith.errors import UserError
from tunesmith.inference.drafts import LOOKUP
from tunesmith.inference.model import Model
from tunesmith.inference.model_reference import fingerprint_of
from tunesmith.inference.sampling import Sampling
from tunesmith.prompting.prompted import PromptRenderer
from tunesmith.serving.adapters import ServedAdapters
from tunesmith.serving.bodies import B, Body, parsed
from tunesmith.serving.engine_thread import EngineThread
from tunesmith.serving.errors import ApiError, unknown_model
from tunesmith.serving.feedback import Feedback
from tunesmith.serving.keys import Client, Keys
from tunesmith.serving.metrics import Metrics

R = TypeVar("R")
M = TypeVar("M", bound=Body)

log = logging.getLogger("tunesmith.serving")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on.

    Attributes:
        body_bytes: the most of a request's body.
        arriving_bytes: the most of all bodies that are arriving.
        body_seconds: within which a body has to arrive.
        max_tokens: the most of an answer; also of one whose client names no limit.
        queue: the most answers that wait.
        seconds: the most that a request takes.
    """

    body_bytes: int = 8_000_000
    arriving_bytes: int = 512_000_000
    body_seconds: float = 30.0
    max_tokens: int = 4096
    queue: int = 512
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is for.

    Attributes:
        client: who asks.
        model: the name that it asked for.
        adapter: of that name; None: the model itself.
        fingerprint: of the weights: the same fingerprint, the same answers to the same seed.
        arrived: when it did.
    """

    client: Client
    model: str
    adapter: str | None
    fingerprint: str
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class Service:
    """A model to serve, and how.

    Attributes:
        model: loaded.
        name: that clients call it by.
        thread: that computes.
        adapters: beside the model; None: it takes none.
        keys: of clients.
        limits: on requests.
        feedback: on responses; None: it is not kept.
        default: of the sampling, for fields that a request leaves out.
        draft: what guesses the next tokens, as in `Model.generate`.
        logs_prompts: whether prompts and answers are in the log.
        prompt: before all chats; None: none.
    """

    model: Model
    name: str
    thread: EngineThread
    adapters: ServedAdapters | None = None
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    feedback: Feedback | None = None
    default: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    draft: str | None = LOOKUP
    logs_prompts: bool = False
    prompt: PromptRenderer | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.thread.waiting, lambda: self.thread.running)
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._arriving = 0  # bytes of bodies
        self._mean_seconds = 1.0  # of an answer, of late
        reference = self.model.reference
        about = [fingerprint_of(self.model.name), str(self.model.dtype), reference.base.weights, self.model.cache]
        about += [] if self.prompt is None else [self.prompt.prompt.version]
        self._own_fingerprint = json.dumps(about, sort_keys=True)

    # Who asks for what

    def client(self, request: Request) -> Client:
        """Who sent the request.

        Raises:
            ApiError: nobody whose key is known.
        """
        client = self.keys.client(request.headers.get("authorization"))
        if client is None:
            raise ApiError(
                401,
                "The API key is missing or not known. Send it as: Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        return client

    async def body(self, request: Request, kind: type[B]) -> B:
        """The request's body.

        Raises:
            ApiError: it is not JSON, too large, too slow, or has a field that is wrong or not supported.
        """
        kinds = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kinds != "application/json":  # a web page of another origin cannot send this type without being asked first
            raise ApiError(415, "Send the body as JSON, with Content-Type: application/json.")
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    self._arriving += len(chunk)
                    self._refuse_too_large(len(data))
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {self.limits.body_seconds:g} seconds.") from None
        finally:
            self._arriving -= len(data)
        return await self.prepare(partial(parsed, kind, bytes(data)))

    def _refuse_too_large(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise ApiError(413, f"The body has more than {self.limits.body_bytes:,} bytes.", code="body_too_large")
        if self._arriving > self.limits.arriving_bytes:
            raise ApiError(503, "Too many bodies arrive at present. Try again later.", retry_after=1)

    async def asked(self, request: Request, kind: type[M]) -> tuple[M, Target]:
        """The body of a request for a model, and what it is for.

        Raises:
            ApiError: as `client`, `body` and `target`.
        """
        client = self.client(request)
        body = await self.body(request, kind)
        target = await self.target(client, body.model)
        request.state.model = target.model  # for the metrics
        return body, target

    async def target(self, client: Client, model: str) -> Target:
        """The model or adapter of that name, as its files are now.

        Raises:
            ApiError: there is none, the client has no right to it, or it cannot be used.
        """
        known = model == self.name or (self.adapters is not None and self.adapters.knows(model))
        if not known or not client.may_use(model):
            raise unknown_model(model)
        if model == self.name:
            return Target(client, model, None, self._fingerprint(""))
        adapters = self.adapters
        assert adapters is not None
        try:
            identity = await self.thread.call(lambda: adapters.refresh(model))
        except UserError as error:
            raise ApiError(503, f"The adapter {model} cannot be used: {error}", "model", "adapter_unusable") from None
        return Target(client, model, model, self._fingerprint(identity))

    def models(self, client: Client) -> list[str]:
        """The names of all models that the client may use."""
        names = [self.name, *([] if self.adapters is None else self.adapters.names)]
        return [name for name in names if client.may_use(name)]

    def refuse_full(self, count: int) -> None:
        """Refuse answers that the queue has no room for; one request alone may be longer than the queue.

        Args:
            count: of the answers.

        Raises:
            ApiError: there is no room.
        """
        waiting = self.thread.waiting
        if waiting + count > max(self.limits.queue, count):
            after = max(1, round(self._mean_seconds * waiting / self.model.concurrent))
            message = f"{waiting:,} answers wait already. Try again later."
            raise ApiError(429, message, code="queue_full", retry_after=after)

    def answered_in(self, seconds: float) -> None:
        """Take account of the time that an answer took, for what `Retry-After` says."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    async def prepare(self, work: Callable[[], R]) -> R:
        """Run something that takes a while, such as tokenizing a long chat, beside the event loop.

        Raises:
            ApiError: the work raised UserError.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, work)
        except UserError as error:
            raise ApiError(400, str(error)) from None

    def remember(self, identity: str, target: Target, **response: Any) -> None:
        """Keep a response for feedback, and write it to the log where that is asked for.

        Args:
            identity: of the response.
            target: which model wrote it, for whom.
            response: what was asked and answered.
        """
        if self.logs_prompts:
            log.info("%s %s", identity, json.dumps(response, ensure_ascii=False))
        if self.feedback is not None:
            about = {"model": target.model, "client": target.client.name, "time": int(time.time())}
            self.feedback.remember(identity, {**about, **response})

    def _fingerprint(self, identity: str) -> str:
        """Of the model with the adapter of that identity."""
        return "fp_" + hashlib.sha256((self._own_fingerprint + identity).encode()).hexdigest()[:12]


def about(target: Target, prefix: str, kind: str) -> dict[str, Any]:
    """What a chat's or a completion's response begins with.

    Args:
        target: what was asked for.
        prefix: of the response's id.
        kind: the name of the response's form.
    """
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": target.model,
        "system_fingerprint": target.fingerprint,
    }


def reserve(client: Client, tokens: int) -> None:
    """Take tokens from a key's minute.

    Raises:
        ApiError: there are not so many left.
    """
    seconds = client.reserve(tokens)
    if seconds is not None:
        message = "The key's tokens of this minute are used up."
        raise ApiError(429, message, code="tokens_used_up", retry_after=seconds)


async def unless_gone(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """Do the work for as long as the client is there.

    Raises:
        ClientDisconnect: it has gone, and the work was given up.
    """
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
