"""What stands before the application: who may reach a server without keys, and how long a client may take nothing."""

import asyncio
import ipaddress

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serving.errors import ApiError

SEND_SECONDS = 30.0
"""A client that takes nothing of its response for so long is given up."""

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


def guards(only_loopback: bool) -> list[Middleware]:
    """The guards of an application, the outermost first.

    Args:
        only_loopback: whether only this machine may use it, by one of its own names: a web page whose name was made to
            point here (DNS rebinding) could otherwise use a server that needs no key.
    """
    local = [Middleware(OnlyThisMachine), Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)]
    return [Middleware(PatientSend), *(local if only_loopback else [])]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class OnlyThisMachine:
    """Refuses clients on other machines, whatever address the server listens on.

    Args:
        app: to guard.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None and not is_loopback(client[0]):
            message = "This server has no keys, so it answers this machine only. Start it with --api-key-file."
            await ApiError(403, message, code="only_this_machine").response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class PatientSend:
    """Gives up a client that takes nothing of its response for a while.

    Args:
        app: to guard.
        seconds: how long a client may take nothing.
    """

    def __init__(self, app: ASGIApp, seconds: float = SEND_SECONDS) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._seconds):
                await send(message)

        await self._app(scope, receive, send_in_time)
