"""Whether the hub can be reached. Its library finds out in 23 seconds, since it tries each file five times."""

import socket
import time
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, try_to_load_from_cache

from tunesmith.errors import UserError

AGAIN = 60.0
"""Seconds after which the hub is tried again: a process may outlive the lack of a network."""


def obstacle() -> str | None:
    """Why nothing can be fetched from the hub now; None if nothing is known that prevents it. Where a proxy connects,
    only the hub's library can find out."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _no_connection(constants.ENDPOINT, int(time.monotonic() / AGAIN))


@lru_cache(1)
def _no_connection(endpoint: str, _minute: int) -> str | None:
    """Why there is no connection to the endpoint; tried once a minute, as long as the hub's library would try once."""
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in getproxies() and not proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), constants.HF_HUB_ETAG_TIMEOUT).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def refuse_out_of_reach(name: str, revision: str | None) -> None:
    """Refuse a hub name whose config is not on this machine and cannot be fetched.

    Raises:
        UserError: it cannot be fetched now.
    """
    cached = try_to_load_from_cache(name, "config.json", constants.HF_HUB_CACHE, revision)
    reason = None if isinstance(cached, str) else obstacle()
    if reason is not None:
        which = name if revision is None else f"{name} at {revision}"
        raise UserError(
            f"base: {which} is not a directory, its config has not been fetched before, and {constants.ENDPOINT} "
            f"cannot be asked: {reason}. Connect to a network, or give a model directory or base: embedded."
        )
