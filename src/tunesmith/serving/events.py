"""Server-sent events (WHATWG HTML, section 9.2), as OpenAI's clients read them."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from tunesmith.serving.errors import ApiError, internal_error
from tunesmith.serving.service import unless_gone

log = logging.getLogger("tunesmith.serving")

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def stream(request: Request, events: AsyncGenerator[bytes]) -> StreamingResponse:
    """The response of these events. An error before the first one is raised, so that it has a status of its own.

    Raises:
        ApiError: as the events' first.
        ClientDisconnect: the client has gone before it.
    """
    first = await unless_gone(request, _first(events))

    async def body() -> AsyncIterator[bytes]:
        try:
            async with aclosing(events):
                yield first
                async for each in events:
                    yield each
        except ApiError as error:
            yield event(error.body)
        except Exception:
            log.exception("A stream failed.")
            yield event(internal_error().body)

    return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _first(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)
