"""A client of OpenAI's protocol: `tunesmith serve`, llama.cpp's server, vLLM, and others."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tunesmith.errors import UserError
from tunesmith.server_address import address_and_model

KEY_VARIABLE = "TUNESMITH_API_KEY"
"""The environment variable with the key for servers."""

SECONDS = 600
"""Until a request is given up."""

BUSY = {408, 429, 500, 502, 503, 504}
"""Codes after which the same request may work a little later."""

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before a request is sent again, if the server does not say how long."""


class RefusedError(UserError):
    """A server refuses a request.

    Attributes:
        code: of HTTP.
        why: what the server says.
    """

    def __init__(self, message: str, code: int, why: str) -> None:
        super().__init__(message)
        self.code, self.why = code, why


class OpenAIClient:
    """A server, and one of its models.

    Args:
        url: of the server, with or without `/v1`.
        model: the model's name there; None: the first one that the server lists.
        key: for the server; None: what `TUNESMITH_API_KEY` says, if it is set.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        self._address = url.rstrip("/").removesuffix("/v1")
        self.url = f"{self._address}/v1"
        self._model, self._key = model, key or os.environ.get(KEY_VARIABLE)

    @classmethod
    def of(cls, name: str) -> "OpenAIClient":
        """A server and its model by one name.

        Args:
            name: `http://HOST:PORT/v1#MODEL`, or without `#MODEL`: the first one that the server lists.
        """
        return cls(*address_and_model(name))

    @cached_property
    def model(self) -> str:
        """The model's name.

        Raises:
            UserError: the server does not answer, or lists no model.
        """
        if self._model:
            return self._model
        listed = self.call("models").get("data") or []
        if not listed:
            raise UserError(f"{self.url} lists no model. Name one: {self.url}#NAME")
        return str(listed[0]["id"])

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """Send a request, again if the server is busy.

        Args:
            path: below `/v1`; with a slash before it, below the server's own address.
            body: its fields besides `model`; without any, it is a GET.

        Returns:
            The reply.

        Raises:
            UserError: the server does not answer; as `RefusedError`: it refuses.
        """
        with self._opened(path, {"model": self.model, **body} if body else None) as reply:
            try:
                content: dict[str, Any] = json.load(reply)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self._silent(error) from None
        return content

    def order(self, path: str, **body: Any) -> None:
        """Send a request for the server itself. What it replies, if it does not refuse, is dropped.

        Args:
            path: below `/v1`.
            body: all of its fields.

        Raises:
            UserError: the server does not answer; as `RefusedError`: it refuses.
        """
        with self._opened(path, body):
            pass

    def events(self, path: str, **body: Any) -> Iterator[dict[str, Any]]:
        """Send a request whose reply is a stream.

        Args:
            path: below `/v1`.
            body: its fields besides `model` and `stream`.

        Yields:
            The events, up to `[DONE]`.

        Raises:
            UserError: the server does not answer; as `RefusedError`: it refuses.
        """
        with self._opened(path, {"model": self.model, **body, "stream": True}) as reply:
            try:
                for line in reply:
                    data = line.decode().strip().removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    if line.startswith(b"data:"):
                        yield json.loads(data)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self._silent(error) from None

    def _opened(self, path: str, body: dict[str, Any] | None) -> Any:
        """The reply to this body, or to a GET, not read yet."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        url = f"{self._address}{path}" if path.startswith("/") else f"{self.url}/{path}"
        request = urllib.request.Request(url, data, headers)
        for pause in (*PAUSES, None):
            try:
                return urllib.request.urlopen(request, timeout=SECONDS)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or pause is None:
                    why = error_message(error.read())
                    message = f"{url} answers {error.code}: {why.rstrip('.')}.{self._advice(error)}"
                    raise RefusedError(message, error.code, why) from None
                after = error.headers.get("Retry-After", "")
                time.sleep(float(after) if after.isdigit() else pause)
            except OSError as error:
                raise self._silent(error) from None
        raise AssertionError("the last attempt returns or raises")

    def _silent(self, error: Exception) -> UserError:
        return UserError(f"{self.url} does not answer: {error}. Is the server running?")

    def _advice(self, error: urllib.error.HTTPError) -> str:
        return f" Set {KEY_VARIABLE} to a key of the server." if error.code in (401, 403) else ""


def error_message(body: bytes) -> str:
    """What a server says of an error.

    Args:
        body: of its reply.

    Returns:
        The message, or the beginning of the body in one line if there is none.
    """
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body[:200].decode(errors="replace").split())
