"""Without a network, a name on the hub is refused at once, and what has been fetched is used."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.heads.stored import stored_head
from tunesmith.models import hub
from tunesmith.models.load import config_of, load_tokenizer

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The hub cannot be reached and its cache is empty. Waiting to try again fails the test."""

    def refuse(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", UNREACHABLE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub._no_connection.cache_clear()
    yield
    hub._no_connection.cache_clear()


@pytest.mark.parametrize("read", [config_of, load_tokenizer, stored_head])
def test_a_name_on_a_hub_out_of_reach_is_refused_without_trying_again(read: Any) -> None:
    message = rf"base: nobody/tiny is not a directory, .*{UNREACHABLE} cannot be asked: Connection refused\. Connect to"
    with pytest.raises(UserError, match=message):
        read(Base(path="nobody/tiny"))


def test_a_fetched_model_is_used_without_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--nobody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    LlamaConfig(hidden_size=64).save_pretrained(repository / "snapshots" / ("a" * 40))
    base = Base(path="nobody/tiny")
    assert config_of(base).hidden_size == 64
    assert stored_head(base).generates_text, "its files name no head, which the hub is not asked for"
    with pytest.raises(UserError, match="has not been fetched before"):
        config_of(Base(path="nobody/tiny", revision="v2"))


def test_a_hub_that_answers_or_is_behind_a_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.obstacle() == "Connection refused"
    with monkeypatch.context() as patched, socket.create_server(("127.0.0.1", 0)) as server:
        patched.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.obstacle() is None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:10")
    monkeypatch.setenv("no_proxy", "")
    hub._no_connection.cache_clear()
    assert hub.obstacle() is None
