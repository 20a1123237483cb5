"""What a trainer asks of a server, as of vLLM's: token ids, and adapters that are loaded while it runs."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import Served, save_adapter, served

from tunesmith.inference.model import load
from tunesmith.serving.keys import add_key

PROMPT = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def server(tiny_model: Path, folder: Path) -> Iterator[Served]:
    with served(tiny_model, adapters=folder) as running:
        yield running


def post(server: Served, path: str, key: str = "none", **body: Any) -> tuple[int, str]:
    """Status and content of the reply."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server.address}/v1/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def complete(server: Served, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 6, "return_token_ids": True, **body}
    status, content = post(server, "completions", **asked)
    assert status == 200, content
    found: dict[str, Any] = json.loads(content)["choices"][0]
    return found


def test_ids_are_those_of_the_prompt_and_of_the_answer(server: Served, tiny_model: Path) -> None:
    """With the id that ends the answer, also in the log-probabilities; a client names further ids that end one."""
    model = load(tiny_model, precision="fp32")
    whole = complete(server, logprobs=0)
    assert whole["prompt_token_ids"] == PROMPT
    assert len(whole["token_ids"]) == len(whole["logprobs"]["token_logprobs"])
    (scored,) = model.generator.scores([(PROMPT, whole["token_ids"])])
    assert whole["logprobs"]["token_logprobs"] == pytest.approx(scored, abs=1e-5)
    end = whole["token_ids"][2]
    first = whole["token_ids"].index(end)
    cut = complete(server, logprobs=0, stop_token_ids=[end])
    assert (cut["token_ids"], cut["finish_reason"]) == (whole["token_ids"][: first + 1], "stop")
    assert cut["logprobs"]["token_logprobs"] == whole["logprobs"]["token_logprobs"][: first + 1]


def test_ids_are_not_streamed(server: Served) -> None:
    status, message = post(server, "completions", model="tiny", prompt="a", stream=True, return_token_ids=True)
    assert (status, message) == (400, "return_token_ids cannot be streamed. Leave out one of them.")


def test_an_adapter_answers_from_when_it_is_loaded_until_it_is_unloaded(
    server: Served, folder: Path, tiny_model: Path
) -> None:
    """Also one that has no effect yet, as at the start of training."""
    base = complete(server)["token_ids"]
    save_adapter(tiny_model, folder / "new", spread=3.0)
    save_adapter(tiny_model, folder / "zero", spread=0.0)
    for name in ("new", "zero"):
        status, text = post(server, "load_lora_adapter", lora_name=name, lora_path=str(folder / name))
        assert (status, text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert complete(server, model="zero")["token_ids"] == base
    assert complete(server, model="new")["token_ids"] != base
    assert post(server, "unload_lora_adapter", lora_name="zero")[0] == 200
    assert post(server, "unload_lora_adapter", lora_name="zero") == (400, "There is no adapter zero. Loaded: new.")


def test_adapters_elsewhere_are_refused(server: Served, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    save_adapter(tiny_model, tmp_path / "other")
    for name, path in (("other", tmp_path / "other"), ("..", folder / ".."), ("missing", folder / "missing")):
        status, message = post(server, "load_lora_adapter", lora_name=name, lora_path=str(path))
        assert status == 400
        assert "is not where this server takes adapters from" in message or "There is no adapter" in message


def test_adapters_need_a_directory_and_a_key_to_all_models(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "one", ("tiny",))
    with served(tiny_model, api_key_file=tmp_path / "keys.json", adapters=folder) as running:
        assert post(running, "unload_lora_adapter", key, lora_name="a")[0] == 403
        assert post(running, "unload_lora_adapter", lora_name="a")[0] == 401
    with served(tiny_model) as running:
        status, message = post(running, "load_lora_adapter", lora_name="a", lora_path="a")
        assert (status, message) == (404, "This server takes no adapters. Start it with --adapters DIR.")
