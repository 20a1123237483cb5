"""Before a server listens: names, addresses, defaults of sampling, adapters in a directory, vLLM's command."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running_server import save_adapter
from transformers import GenerationConfig

from tunesmith.errors import UserError
from tunesmith.inference import vllm_adapters
from tunesmith.inference.sampling import Sampling
from tunesmith.ops import native
from tunesmith.serving import vllm
from tunesmith.serving.errors import ApiError
from tunesmith.serving.guards import is_loopback
from tunesmith.serving.load import load_service, name_of
from tunesmith.serving.server import Server, listen
from tunesmith.serving.vllm import run_vllm, vllm_command


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's threads from /proc")
def test_the_thread_that_loaded_a_model_has_no_workers_left(tiny_model: Path) -> None:
    def threads() -> set[str]:
        return {each.name for each in Path("/proc/self/task").iterdir()}

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        native.end_workers()
        alone = threads()
        torch.zeros(10**6).add_(1)
        workers = threads() - alone
        load_service(str(tiny_model))
        assert len(workers) == 1
        assert not workers & threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("example.org", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_a_model_is_called_by_the_last_part_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.gguf").touch()
    monkeypatch.chdir(tmp_path / "mine")
    assert name_of(".") == name_of(str(tmp_path / "mine")) == name_of(str(tmp_path / "mine.gguf")) == "mine"
    assert name_of("owner/name") == "owner/name"


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")])
def test_the_address_has_the_port_that_was_free(host: str, address: str, tiny_model: Path) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert Server(load_service(str(tiny_model)), listener).address == (f"http://{address}:{port}")
        with pytest.raises(
            UserError, match=r"cannot be used: Address already in use.* Choose another --host or --port"
        ):
            listen(host, port)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({}, Sampling(temperature=1.0)),
        ({"do_sample": False, "temperature": 0.3}, Sampling(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.3, "top_p": 0.7, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2},
            Sampling(temperature=0.3, top_p=0.7, top_k=9, min_p=0.1, repetition_penalty=1.2),
        ),
    ],
)
def test_sampling_is_as_the_models_authors_recommend(
    stored: dict[str, Any], expected: Sampling, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    own = GenerationConfig.from_pretrained(tiny_model).to_dict()
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({**own, **stored}))
    assert load_service(str(tmp_path / "model")).default == expected
    assert load_service(str(tmp_path / "model"), temperature=0.0).default.temperature == 0.0


def test_adapters_are_the_given_ones_and_those_in_the_directory(tiny_model: Path, tmp_path: Path) -> None:
    made = save_adapter(tiny_model, tmp_path / "made")
    directory = tmp_path / "adapters"
    for name in ("plain", ".hidden"):
        shutil.copytree(made, directory / name)
    shutil.copytree(made, directory / "run" / "adapter")
    (directory / "empty").mkdir()
    service = load_service(str(tiny_model), adapters={"given": made}, adapter_directory=directory)
    adapters = service.adapters
    assert adapters is not None
    assert adapters.names == ["given", "plain", "run"]
    assert [adapters.knows(name) for name in ("given", "plain", "run")] == [True] * 3
    for name in ("empty", ".hidden", "none", "..", "../made", "run/adapter"):
        assert not adapters.knows(name)
        with pytest.raises(UserError, match=r"^There is no adapter "):
            adapters.refresh(name)
    before = adapters.refresh("plain")
    assert adapters.refresh("given") == before
    other = save_adapter(tiny_model, tmp_path / "other", spread=0.5)
    for file in other.iterdir():
        file.replace(directory / "plain" / file.name)
    assert adapters.refresh("plain") != before
    with pytest.raises(UserError, match=r"^The name tiny is the model's own\. Give the adapter another one"):
        load_service(str(tiny_model), name="tiny", adapters={"tiny": made})
    with pytest.raises(UserError, match=r"nowhere is not a directory"):
        load_service(str(tiny_model), adapter_directory=tmp_path / "nowhere")


def test_an_error_has_the_type_and_headers_of_its_status() -> None:
    of_openai = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    of_openai |= {404: "not_found_error", 413: "invalid_request_error", 415: "invalid_request_error"}
    of_openai |= {408: "timeout_error", 429: "rate_limit_error", 503: "server_error", 418: "server_error"}
    for status, kind in of_openai.items():
        assert ApiError(status, "No.", "field", "word").body == {
            "error": {"message": "No.", "type": kind, "param": "field", "code": "word"}
        }
    assert ApiError(401, "No.").response().headers["WWW-Authenticate"] == "Bearer"
    later = ApiError(429, "No.", retry_after=7).response()
    assert (later.status_code, later.headers["Retry-After"]) == (429, "7")
    assert not {"retry-after", "www-authenticate"} & set(ApiError(400, "No.").response().headers)


# vLLM


def with_config(adapter: Path, **changes: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return adapter


def words_of(model: Path, adapters: dict[str, Path], directory: Path) -> list[str]:
    return vllm_command(str(model), "tiny", adapters, "127.0.0.1", 8000, directory / "template.jinja")


@pytest.mark.parametrize(("ranks", "allowed"), [((1,), "1"), ((8, 2), "8"), ((9,), "16"), ((512,), "512")])
def test_vllm_gets_the_next_rank_that_it_takes(
    ranks: tuple[int, ...], allowed: str, tiny_model: Path, tmp_path: Path
) -> None:
    made = save_adapter(tiny_model, tmp_path / "made")
    adapters = {}
    for rank in ranks:
        adapters[f"a{rank}"] = with_config(shutil.copytree(made, tmp_path / f"a{rank}"), r=rank)
    words = words_of(tiny_model, adapters, tmp_path)
    assert words[words.index("--max-lora-rank") + 1] == allowed
    assert words[words.index("--max-loras") + 1] == str(len(ranks))
    modules = words[words.index("--lora-modules") + 1 :]
    assert modules == [f"{name}={address}" for name, address in adapters.items()]


def test_vllm_without_adapters_has_no_lora(tiny_model: Path, tmp_path: Path) -> None:
    words = words_of(tiny_model, {}, tmp_path)
    assert words[:5] == ["vllm", "serve", str(tiny_model), "--served-model-name", "tiny"]
    assert "--enable-lora" not in words


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(({setting: {"x": 1}}, text) for setting, text in vllm_adapters.UNSUPPORTED.items()),
        ({"peft_type": "IA3"}, "an adapter of type IA3"),
        ({"r": 513}, "rank 513, and the highest is 512"),
        ({"bias": "all", "use_dora": True}, "trained biases"),
    ],
)
def test_what_vllm_cannot_take_is_named(changes: dict[str, Any], reason: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter = with_config(save_adapter(tiny_model, tmp_path / "made"), **changes)
    with pytest.raises(UserError, match=rf"^vLLM cannot take {adapter}: it has {reason}\. Merge it with"):
        vllm._rank(adapter)


def test_vllm_takes_adapters_of_the_served_base_alone(tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    adapter = save_adapter(other, tmp_path / "made")
    with pytest.raises(UserError, match=r"made is an adapter of .*other, and .*llama is served"):
        words_of(tiny_model, {"a": adapter}, tmp_path)
    with pytest.raises(UserError, match=r"other has no adapter\.$"):
        words_of(tiny_model, {"a": other}, tmp_path)


def test_vllm_takes_the_place_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execvp", lambda *given: started.append(given))
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    run_vllm(["vllm", "serve"], host_is_local=True)
    with pytest.raises(UserError, match="Set VLLM_API_KEY to one"):
        run_vllm(["vllm", "serve"], host_is_local=False)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    run_vllm(["vllm", "serve"], host_is_local=False)
    assert started == [("vllm", ["vllm", "serve"])] * 2
