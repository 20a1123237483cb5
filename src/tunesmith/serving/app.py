"""The web application: routes, and what guards them."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tunesmith.errors import UserError
from tunesmith.inference.rating import rates_answers
from tunesmith.serving import metrics
from tunesmith.serving.adapters import ServedAdapters
from tunesmith.serving.answering import Answering
from tunesmith.serving.bodies import B, FeedbackBody, LoadAdapterBody, UnloadAdapterBody
from tunesmith.serving.chat import Chat
from tunesmith.serving.completions import Completions
from tunesmith.serving.errors import ApiError, internal_error, on_api_error, unknown_model
from tunesmith.serving.guards import guards
from tunesmith.serving.prompts import Prompts
from tunesmith.serving.ratings import Ratings
from tunesmith.serving.responses import Responses
from tunesmith.serving.service import Service
from tunesmith.serving.vectors import Vectors

Endpoint = Callable[[Request], Awaitable[Response]]

WATCHED = ("/health", "/ready", "/metrics")
"""What watches the server asks for again and again; it is not in the log."""

log = logging.getLogger("tunesmith.serving")


def application(service: Service, only_loopback: bool) -> Starlette:
    """The application. Its lifespan is that of the engine's thread.

    Args:
        service: the model, and how it is served.
        only_loopback: whether only this machine may use it.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await asyncio.to_thread(service.thread.stop)

    routes = [
        Route(path, _counted(service, path, endpoint), methods=[method])
        for path, method, endpoint in _endpoints(service)
    ]
    handlers: dict[Any, Any] = {ApiError: on_api_error, HTTPException: _on_http_exception}
    return Starlette(routes=routes, middleware=guards(only_loopback), exception_handlers=handlers, lifespan=lifespan)


def _endpoints(service: Service) -> list[tuple[str, str, Endpoint]]:
    about = _About(service)
    always: list[tuple[str, str, Endpoint]] = [
        ("/health", "GET", about.health),
        ("/ready", "GET", about.ready),
        ("/metrics", "GET", about.metrics),
        ("/v1/models", "GET", about.models),
        ("/v1/models/{name:path}", "GET", about.one_model),
        ("/v1/feedback", "POST", about.feedback),
        ("/v1/load_lora_adapter", "POST", about.load_adapter),
        ("/v1/unload_lora_adapter", "POST", about.unload_adapter),
    ]
    vectors, commands = Vectors(service), service.model.head.commands
    writing: list[Endpoint] = []
    if "generate" in commands:
        answering = Answering(service)
        chat = Chat(service, answering, Prompts(service.model.generator, service.prompt))
        writing = [chat, Completions(service, answering), Responses(service, chat)]
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
    found = dict(zip(paths, writing, strict=False))
    found |= {"/v1/embeddings": vectors.embeddings} if "embed" in commands else {}
    found |= {"/v1/classify": vectors.classify} if "classify" in commands else {}
    found |= {"/pooling": Ratings(service)} if rates_answers(service.model.head) else {}
    others = [*paths, "/v1/embeddings", "/v1/classify", "/pooling"]
    return always + [(path, "POST", found.get(path, about.not_this_model)) for path in others]


class _About:
    """What does not compute."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        """Whether the engine lives."""
        return JSONResponse(
            {"status": "ok"} if self._service.thread.is_alive else {"status": "dead"},
            200 if self._service.thread.is_alive else 503,
        )

    async def ready(self, request: Request) -> Response:
        """Whether another answer would be taken on."""
        full = self._service.thread.waiting >= self._service.limits.queue
        return JSONResponse({"status": "full" if full else "ready"}, 503 if full else 200)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' page."""
        if self._service.client(request).models is not None:
            raise ApiError(403, "The metrics tell of all models, and this key may use some. Use a key without --model.")
        return Response(self._service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The models that the client may use."""
        names = self._service.models(self._service.client(request))
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in names]})

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self._service.models(self._service.client(request)):
            raise unknown_model(name)
        return JSONResponse(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._service.created, "owned_by": "tunesmith"}

    async def feedback(self, request: Request) -> Response:
        """Keep what somebody thinks of a response."""
        service = self._service
        client = service.client(request)
        body = await service.body(request, FeedbackBody)
        if service.feedback is None:
            raise ApiError(404, "This server keeps no feedback. Start it with --feedback FILE.", code="no_feedback")
        opinion = body.model_dump(exclude={"id"}, exclude_none=True)
        if not opinion:
            raise ApiError(400, "Give a thumb, a better answer, or a comment.")
        row = service.feedback.row(body.id, client.name, opinion)
        if row is None:
            raise ApiError(404, "The response is not known here, or too old.", "id", "response_not_found")
        if not await service.prepare(partial(service.feedback.append, row)):
            raise ApiError(507, "The file of feedback has reached its limit. Move it away.", code="feedback_full")
        return JSONResponse({"id": body.id, "object": "feedback", "stored": True})

    async def load_adapter(self, request: Request) -> Response:
        """Read an adapter of the directory of adapters now."""
        body, adapters = await self._of_adapters(request, LoadAdapterBody)
        await self._on_engine(lambda: adapters.load(body.lora_name, Path(body.lora_path)))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """Forget an adapter of the directory of adapters."""
        body, adapters = await self._of_adapters(request, UnloadAdapterBody)
        await self._on_engine(lambda: adapters.unload(body.lora_name))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _of_adapters(self, request: Request, kind: type[B]) -> tuple[B, ServedAdapters]:
        """The body of a request about adapters, from a client who may use all models, and the adapters."""
        service = self._service
        if service.client(request).models is not None:
            raise ApiError(403, "This key may use some models only. Use a key without --model.")
        body = await service.body(request, kind)
        if service.adapters is None:
            raise ApiError(404, "This server takes no adapters. Start it with --adapters DIR.", code="no_adapters")
        return body, service.adapters

    async def _on_engine(self, work: Callable[[], None]) -> None:
        """Do something with adapters between two steps."""
        try:
            await self._service.thread.call(work)
        except UserError as error:
            raise ApiError(400, str(error)) from None

    async def not_this_model(self, request: Request) -> Response:
        """An endpoint for models with another head."""
        self._service.client(request)
        does = {
            "generate": "writes text",
            "classify": "classifies texts",
            "embed": "embeds texts",
            "reward": "rates answers",
        }
        able = " and ".join(does[command] for command in self._service.model.head.commands)
        raise ApiError(
            400, f"{self._service.name} {able}, so {request.url.path} is not for it.", "model", "wrong_model"
        )


def _counted(service: Service, path: str, endpoint: Endpoint) -> Endpoint:
    """The endpoint, with its requests counted and in the log. A bug of ours in one request stays in that request."""

    async def run(request: Request) -> Response:
        started = time.perf_counter()
        request.state.model = ""  # until it is known to be one that is here
        try:
            response = await endpoint(request)
        except ApiError as error:
            response = error.response()
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except HTTPException:
            raise
        except Exception:
            log.exception("%s failed.", path)
            response = internal_error().response()
        service.metrics.requests.labels(request.state.model, path, str(response.status_code)).inc()
        if path not in WATCHED:
            milliseconds = 1000 * (time.perf_counter() - started)
            log.info("%s %s %d, %.0f ms to the first byte", request.method, path, response.status_code, milliseconds)
        return response

    return run


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Starlette's own refusals, such as of an unknown path, in the protocol's form."""
    message = {404: "There is no such page here.", 405: f"{request.method} is not possible here."}
    return ApiError(error.status_code, message.get(error.status_code, error.detail)).response()
