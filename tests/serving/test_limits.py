"""What a server does with too much, with clients that go away, and with what fails: others are not touched."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from running_server import Served, save_adapter, served

from tunesmith.inference.constraint import Constraints, Grammar
from tunesmith.inference.model import Model
from tunesmith.serving.keys import add_key
from tunesmith.serving.service import Limits

QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Served]:
    with served(tiny_model, concurrent=2, limits=Limits(queue=2, max_tokens=480)) as running:
        yield running


def chat(client: openai.OpenAI, **more: Any) -> Any:
    options = {"model": "tiny", "messages": QUESTION, "max_completion_tokens": 5, "temperature": 0, **more}
    return client.chat.completions.create(**options)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def long_stream(client: openai.OpenAI, **more: Any) -> Any:
    """A stream of hundreds of tokens that has begun."""
    events = iter(chat(client, stream=True, max_completion_tokens=480, **more))
    next(events)
    return events


def without_end(server: Served) -> dict[str, Any]:
    """Fields with which an answer has all its tokens: none ends it."""
    return {"logit_bias": {str(stop): -100 for stop in server.service.model.generator.stops}}


def test_a_stream_whose_client_goes_away_frees_its_place(server: Served) -> None:
    with server.client() as client:
        events = chat(client, stream=True, max_completion_tokens=480, **without_end(server))
        next(iter(events))
        assert server.service.thread.running == 1
        events.response.close()
        assert eventually(lambda: server.service.thread.running == 0, 5)


def test_a_client_that_goes_away_before_its_answer_frees_its_place(server: Served) -> None:
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 480, **without_end(server)}
    with closing(connected(server)) as connection:
        connection.sendall(post("/v1/chat/completions", json.dumps(body).encode()))
        assert eventually(lambda: server.service.thread.running == 1)
    assert eventually(lambda: server.service.thread.running == 0, 5)


def test_more_than_the_queue_holds_is_told_when_to_come_again(server: Served) -> None:
    with server.client() as client:
        running = [long_stream(client, **without_end(server)) for _ in range(2)]
        waiting = [threading.Thread(target=chat, args=(client,)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        assert eventually(lambda: server.service.thread.waiting == 2)
        page = server.service.metrics.text().decode()
        for line in ("requests_waiting 2.0", "requests_running 2.0", 'open_answers{model="tiny"} 4.0'):
            assert f"\ntunesmith_{line}\n" in page
        with pytest.raises(openai.RateLimitError, match="2 answers wait already") as refusal:
            chat(client)
        assert int(refusal.value.response.headers["retry-after"]) >= 1
        assert client.with_options(max_retries=0).get("/models", cast_to=object)
        assert [list(events)[-1].choices[0].finish_reason for events in running] == ["length", "length"]
        for thread in waiting:
            thread.join()


def test_an_answer_that_takes_too_long_is_ended(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "limits", Limits(seconds=0.05))
    with server.client() as client, pytest.raises(openai.APIStatusError, match=r"more than 0\.05 seconds") as refusal:
        chat(client, max_completion_tokens=480, **without_end(server))
    assert refusal.value.status_code == 408
    assert eventually(lambda: server.service.thread.running == 0)


def test_a_step_that_fails_fails_its_answers_and_no_later_ones(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = server.service.model.generator.paged.model

    def no_memory(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("no memory of 12 GB")

    with server.client() as client:
        expected = chat(client).choices[0].message.content
        with monkeypatch.context() as patch:
            patch.setattr(model, "compute", no_memory)
            with pytest.raises(openai.InternalServerError, match="Its log says why") as refusal:
                chat(client)
            assert "12 GB" not in refusal.value.message
        assert "no memory of 12 GB" in caplog.text
        assert chat(client).choices[0].message.content == expected
        assert server.service.thread.running == 0


def test_a_key_is_needed_and_has_its_rights(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    every = add_key(file, "everything")
    little = add_key(file, "little", ("one",), tokens_per_minute=100)
    assert file.stat().st_mode & 0o777 == 0o600
    assert every not in file.read_text()
    assert little not in file.read_text()
    adapters = {"one": save_adapter(tiny_model, tmp_path / "one")}
    with served(tiny_model, adapters=adapters, api_key_file=file) as server:
        with server.client("ts-wrong") as client, pytest.raises(openai.AuthenticationError, match="not known"):
            chat(client)
        with pytest.raises(openai.AuthenticationError), server.client("ts-wrong") as client:
            client.models.list()
        with server.client(every) as client:
            assert {each.id for each in client.models.list()} == {"tiny", "one"}
            chat(client)
        with server.client(little) as client:
            assert {each.id for each in client.models.list()} == {"one"}
            with pytest.raises(openai.NotFoundError, match="There is no model tiny here"):
                chat(client)
            chat(client, model="one", max_completion_tokens=30)
            with pytest.raises(openai.RateLimitError, match="tokens of this minute") as refusal:
                chat(client, model="one", max_completion_tokens=60)
            assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 60


def test_a_replaced_adapter_answers_at_once_and_begun_answers_keep_the_old(tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "adapters"
    save_adapter(tiny_model, directory / "mine", "down_proj")
    other = save_adapter(tiny_model, tmp_path / "other", "up_proj", spread=0.5)
    with served(tiny_model, adapters=directory) as server, server.client() as client:
        fields = {"model": "mine", **without_end(server)}
        old = chat(client, **fields, max_completion_tokens=480).choices[0].message.content
        events = chat(client, **fields, stream=True, max_completion_tokens=480)
        text = next(iter(events)).choices[0].delta.content
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (other / name).replace(directory / "mine" / name)
        new = chat(client, **fields, max_completion_tokens=480).choices[0].message.content
        text += "".join(event.choices[0].delta.content or "" for event in events)
        assert text == old
        assert new != old
        loaded = Model(tiny_model, precision="fp32")
        loaded.load_adapter("mine", directory / "mine")
        bias = {int(token): value for token, value in without_end(server)["logit_bias"].items()}
        assert loaded.generate("Hi", max_new_tokens=480, adapter="mine", logit_bias=bias)[0].text == new
        (directory / "mine" / "adapter_model.safetensors").write_bytes(b"broken")
        with pytest.raises(openai.InternalServerError, match="The adapter mine cannot be used"):
            chat(client, **fields)


def test_answers_that_have_begun_are_completed_when_the_server_stops(tiny_model: Path) -> None:
    with served(tiny_model) as server, server.client() as client:
        expected = chat(client, max_completion_tokens=480, **without_end(server)).choices[0].message.content
        events = chat(client, stream=True, max_completion_tokens=480, **without_end(server))
        text = next(iter(events)).choices[0].delta.content
        server.server.stop()
        assert text + "".join(event.choices[0].delta.content or "" for event in events) == expected
        assert eventually(lambda: is_refused(client))


def test_all_that_takes_a_while_is_done_before_the_server_is_ready(
    tiny_model: Path, reading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(name: str) -> Any:
        raise AssertionError(f"{name} is read while requests wait")

    prints = []
    for cache in ("auto", "int8"):
        with (
            served(tiny_model, cache=cache, draft=str(tiny_model)) as server,
            server.client() as client,
            monkeypatch.context() as patch,
        ):
            patch.setattr("tunesmith.serving.service.fingerprint_of", late)
            patch.setattr("tunesmith.inference.model_reference.load_model", late)
            prints.append(chat(client).system_fingerprint)
    assert len(set(prints)) == 2  # answers differ a little
    with served(reading / "classes") as server:
        assert "model" in vars(server.service.model)  # its weights are in memory


def is_refused(client: openai.OpenAI) -> bool:
    """Whether nothing answers any more."""
    try:
        chat(client)
    except openai.APIConnectionError:
        return True
    return False


# Bytes that no client of good will sends


def connected(server: Served) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post(path: str, body: bytes, **headers: str) -> bytes:
    fields = {"Host": "localhost", "Content_Type": "application/json", "Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def answer_to(server: Served, data: bytes) -> bytes:
    """The status line, or nothing if the connection is closed without one."""
    with closing(connected(server)) as connection:
        try:
            connection.sendall(data)
            return connection.recv(65536).split(b"\r\n")[0]
        except ConnectionError:  # closed while we were sending
            return b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post("/v1/chat/completions", b"{"), b"400"),
        (post("/v1/chat/completions", b"[" * 100_000), b"400"),
        (post("/v1/chat/completions", b'{"model": "\xff\xfe"}'), b"400"),
        (post("/v1/chat/completions", b'{"model": "tiny", "messages": ' + b'[{"a":' * 5000 + b"1"), b"400"),
        (post("/v1/chat/completions", b'{"model": "tiny", "temperature": NaN}'), b"400"),
        (post("/v1/chat/completions", b"{}", Content_Type="text/plain"), b"415"),
        (post("/v1/chat/completions", b"{}", Host="evil.example"), b"400"),
        (post("/v1/chat/completions", b"", Content_Length="-5"), b"400"),
        (post("/v1/nothing", b"{}"), b"404"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"\x00" * 100_000, b"400"),
    ],
)
def test_malformed_requests_get_a_4xx(server: Served, data: bytes, status: bytes) -> None:
    line = answer_to(server, data)
    assert line.startswith(b"HTTP/1.1 " + status) or (line == b"" and len(data) > 50_000)
    assert server.service.thread.running == 0


def test_a_connection_without_a_request_is_closed(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serving.server.HEADER_SECONDS", 0.2)
    for begun in (b"", b"POST /v1/chat/comple"):
        with closing(connected(server)) as connection:
            connection.sendall(begun)
            assert connection.recv(10) == b""


def test_a_body_that_does_not_arrive_is_refused(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "limits", Limits(body_seconds=0.2))
    with closing(connected(server)) as connection:
        connection.sendall(post("/v1/chat/completions", b'{"model"', Content_Length="500"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_answers_go_on_while_a_hard_schema_is_compiled(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go, compiling, compile_grammar = threading.Event(), threading.Event(), Constraints._compile

    def hard(constraints: Constraints, text: str) -> Grammar:
        compiling.set()
        assert go.wait(60)
        return compile_grammar(constraints, text)

    constraints = server.service.model.generator._constraints
    monkeypatch.setattr(constraints, "_compiled", lambda text: hard(constraints, text))
    answers: list[Any] = []
    with server.client() as client:
        fields = {"extra_body": {"regex": "[ab]{5}"}}
        thread = threading.Thread(target=lambda: answers.append(chat(client, **fields)))
        thread.start()
        assert compiling.wait(20)
        assert chat(client).usage.completion_tokens == 5
        assert "".join(event.choices[0].delta.content or "" for event in chat(client, stream=True))
        assert client.with_options(max_retries=0).get("/models", cast_to=object)
        assert not answers
        go.set()
        thread.join(20)
        assert set(answers[0].choices[0].message.content) <= {"a", "b"}
        with pytest.raises(openai.BadRequestError, match="not valid"):
            chat(client, extra_body={"regex": "a("})
