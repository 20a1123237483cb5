"""Bytes at random: the server answers with 4xx or closes the connection, and loses neither places nor memory."""

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_server import Served, served

from tunesmith.serving.service import Limits

SECONDS = 600
"""Of the long run."""

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/feedback",
    "/v1/models",
    "/",
)
VALID: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "logprobs": True,
    "stop": ["a"],
    "tools": [],
    "response_format": {"type": "json_object"},
}
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x" * 3000,
    "\ud800",
    [],
    {},
    [[[]]],
    {"a": {"b": 1}},
    ["\0"],
]


@pytest.fixture
def server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr("tunesmith.serving.server.HEADER_SECONDS", 0.1)
    with served(tiny_model, limits=Limits(body_bytes=50_000, body_seconds=0.1)) as running:
        yield running


def changed_body(source: random.Random) -> bytes:
    """A valid body with some fields changed, then maybe some bytes."""
    body = dict(VALID)
    for _ in range(source.randint(0, 3)):
        body[source.choice([*VALID, "n", "seed", "stream", "unknown", "tool_choice"])] = source.choice(VALUES)
    data = bytearray(json.dumps(body).encode())
    for _ in range(source.choice([0, 0, 1, 5])):
        data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def changed_request(source: random.Random) -> bytes:
    """A request, complete or not, in order or not."""
    if source.random() < 0.1:
        return source.randbytes(source.randint(1, 3000))
    body = changed_body(source)
    length = source.choice([len(body), len(body), len(body), len(body) + 50, 10, -1, "x", 10**12])
    head = f"{source.choice(['POST', 'POST', 'POST', 'GET', 'PUT', 'X' * 50])} {source.choice(PATHS)} HTTP/1.1\r\n"
    fields = [
        "Host: localhost",
        f"Content-Length: {length}",
        f"Content-Type: {source.choice(['application/json', 'application/json', 'text/plain', ''])}",
    ]
    if source.random() < 0.1:
        fields.append(f"X: {'a' * source.choice([10, 100_000])}")
    if source.random() < 0.1:
        fields.append("Transfer-Encoding: chunked")
    data = (head + "\r\n".join(fields) + "\r\n\r\n").encode() + body
    return data[: source.randrange(len(data))] if source.random() < 0.15 else data


def status_of(server: Served, data: bytes, source: random.Random) -> int | None:
    """The status of the response to these bytes; None if the connection was closed, here or there, without one."""
    host, port = server.address.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
        try:
            connection.sendall(data)
            if source.random() < 0.2:  # gone at once
                return None
            connection.settimeout(0.3 if source.random() < 0.1 else 20)
            line = connection.recv(100_000)
        except (ConnectionError, TimeoutError):
            return None
        return int(line.split(b" ")[1]) if line.startswith(b"HTTP/") else None


def fuzz(server: Served, source: random.Random, more: Any) -> None:
    """Send changed requests for as long as there is more to do; then all places are free."""
    while more():
        data = changed_request(source)
        status = status_of(server, data, source)
        assert status is None or status == 200 or 400 <= status < 500, (status, data[:3000])
    end = time.monotonic() + 20
    while server.service.thread.running and time.monotonic() < end:
        time.sleep(0.01)
    assert server.service.thread.running == server.service.thread.waiting == 0
    with server.client() as client:
        answer = client.chat.completions.create(model="tiny", messages=VALID["messages"], max_tokens=3, temperature=0)
        assert answer.usage.completion_tokens == 3


def test_changed_requests_get_a_4xx_and_leave_no_place_taken(server: Served) -> None:
    left = iter(range(250))
    fuzz(server, random.Random(4), lambda: next(left, None) is not None)


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS)
def test_ten_minutes_of_changed_requests_leak_no_memory(server: Served) -> None:
    process, source = psutil.Process(os.getpid()), random.Random()
    left = iter(range(300))
    fuzz(server, source, lambda: next(left, None) is not None)
    before = process.memory_info().rss
    end = time.monotonic() + SECONDS
    fuzz(server, source, lambda: time.monotonic() < end)
    assert process.memory_info().rss - before < 50e6
