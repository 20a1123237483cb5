"""Several replicas behind Ray's proxy answer as one server does. Ray is heavy, so the test environment has none:
`pip install 'tunesmith[ray]'` into it, and run this file."""

import re
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from running_server import save_adapter

from tunesmith.errors import UserError
from tunesmith.inference.model import load

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tunesmith[ray]'")

QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas on a cluster of this machine."""
    from ray import serve

    from tunesmith.serving.ray_replicas import replicas

    adapter = save_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "one", "up_proj")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"model": str(tiny_model), "name": "tiny", "precision": "fp32", "adapters": {"one": str(adapter)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(replicas({**options, "replicas": "2", "cpus": 0.5}), route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def page(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        return str(response.read().decode())


def written(address: str) -> dict[str, float]:
    """Tokens of answers by replica, each known by the time when its counter was made."""
    found: dict[str, float] = {}
    for _ in range(30):
        text = page(address)
        made = re.search(r'^tunesmith_answer_tokens_created\{model="tiny"\} (\S+)$', text, re.MULTILINE)
        count = re.search(r'^tunesmith_answer_tokens_total\{model="tiny"\} (\S+)$', text, re.MULTILINE)
        if made and count:
            found[made[1]] = float(count[1])
    return found


@pytest.mark.timeout(600)
def test_two_replicas_share_the_requests_and_answer_alike(address: str, tiny_model: Path) -> None:
    expected = load(tiny_model, precision="fp32").generate("Hi", max_new_tokens=40, temperature=0)[0].text
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:

        def chat(**more: Any) -> Any:
            fields = {"model": "tiny", "messages": QUESTION, "max_completion_tokens": 40, "temperature": 0, **more}
            return client.chat.completions.create(**fields)

        def streamed(number: int) -> str:
            events = chat(stream=True)
            return "".join(event.choices[0].delta.content or "" for event in events)

        assert {each.id for each in client.models.list()} == {"tiny", "one"}
        assert chat().choices[0].message.content == expected
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(streamed, range(16))) == {expected}
        counts = written(address)
        assert len(counts) == 2
        assert sum(counts.values()) == 17 * 40
        one = chat(model="one")
        assert one.choices[0].message.content != expected
        assert len({chat(model="one").system_fingerprint for _ in range(6)}) == 1
        with pytest.raises(openai.BadRequestError, match="audio is not supported"):
            chat(extra_body={"audio": {}})


def test_arguments_are_those_of_the_server() -> None:
    from tunesmith.serving.ray_replicas import replicas

    for args, message in (
        ({}, "model: Field required"),
        ({"model": "embedded", "port": 1}, "port: Extra inputs are not permitted"),
        ({"model": "embedded", "replicas": "many"}, "replicas: Input should be a valid integer"),
        ({"model": "embedded", "replicas": 2, "feedback": "f.jsonl"}, "each replica knows its own responses only"),
    ):
        with pytest.raises(UserError, match=message):
            replicas(args)
