"""Rollouts from a server: `tunesmith serve`, and a stand-in that speaks as vLLM does and answers from our engine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from rollouts import plain_llama, resumed, rollouts_over, tiny_llama, weights_of
from running_server import served
from small_models import method_of
from vllm_stand_in import StandIn, standing_in

from tunesmith.config.objective import SamplingServer
from tunesmith.config.recipe import Recipe
from tunesmith.engine.interrupt import Interruption
from tunesmith.engine.loop import Loop
from tunesmith.errors import UserError
from tunesmith.inference.server_sampler import ServerSampler, _parts


@dataclass(frozen=True)
class Remote:
    """A server of `tiny_llama`: its address, the directory of its model, and where it takes adapters from."""

    address: str
    base: Path
    folder: Path


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("shared")
    plain_llama(torch.float32, 0.3).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    with served(base, adapters=folder) as running:
        yield Remote(running.server.address, base, folder)


def on_server(
    directory: Path, remote: Remote, start: Any = rollouts_over, address: str | None = None, **options: Any
) -> tuple[Loop, list[Any]]:
    """A run with LoRA that samples on the server.

    Args:
        directory: of the run.
        remote: the server.
        start: makes the loop.
        address: of another server in its place.
        options: of `start`.
    """
    settings = {"server": f"{address or remote.address}/v1", "folder": str(remote.folder), "max_gap": 1e-3}
    model = tiny_llama()
    model.name_or_path = str(remote.base)
    return start(directory, model=model, sampler=settings, method="lora", **options)  # type: ignore[no-any-return]


def ids_of(loop: Loop) -> list[int]:
    assert loop.phases is not None
    assert loop.phases.collected is not None
    return loop.phases.collected.table.ids.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("speaks_as_vllm", [False, True])
def test_a_server_samples_what_the_engine_samples(remote: Remote, tmp_path: Path, speaks_as_vllm: bool) -> None:
    """The same tokens in each phase, and nearly the same weights; at the end, the server has forgotten the adapter."""
    local, _ = rollouts_over(tmp_path / "local", method="lora", steps=2, rate=0.05)
    with standing_in(remote.address) as stand_in:
        address = stand_in.address if speaks_as_vllm else None
        loop, events = on_server(tmp_path / "remote", remote, address=address, steps=2, rate=0.05)
        for _ in range(2):
            local.step()
            loop.step()
            assert ids_of(loop) == ids_of(local)
        loop.phases.end()  # type: ignore[union-attr]
    torch.testing.assert_close(weights_of(loop), weights_of(local), rtol=1e-2, atol=1e-3)
    steps = [event for event in events if event["event"] == "step"]
    assert all(event["sampler_gap"] < 1e-4 for event in steps)
    assert list(remote.folder.iterdir()) == []
    if speaks_as_vllm:
        asked = [body for body in stand_in.bodies if body.get("n", 1) > 1]
        assert [(each["top_p"], each["top_k"], each["repetition_penalty"]) for each in asked] == [(1.0, 0, 1.0)] * 4
        assert len(set(stand_in.loads)) == len(stand_in.loads) > 2  # one for each phase, and those of the first check


def test_a_run_on_a_server_resumes_to_the_same_bits(remote: Remote, tmp_path: Path) -> None:
    """And removes the adapter that the killed one left behind."""
    several: dict[str, Any] = {"steps": 3, "minibatches": 2, "rate": 0.05}
    whole, _ = on_server(tmp_path / "whole", remote, **several)
    whole.fit(Interruption())
    before = set(remote.folder.iterdir())
    killed, _ = on_server(tmp_path / "killed", remote, **several)
    killed.step()
    killed.checkpoint()
    killed.step()  # lost
    left = set(remote.folder.iterdir()) - before
    assert len(left) == 1
    again, _ = on_server(tmp_path / "killed", remote, resumed, **several)
    assert not left & set(remote.folder.iterdir())
    again.fit(Interruption())
    assert torch.equal(weights_of(again), weights_of(whole))


def as_base(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "model": "tiny"}


def test_a_server_that_drops_a_new_adapter_stops_the_run_at_its_first_step(remote: Remote, tmp_path: Path) -> None:
    """Where the adapter is still zero, so that base and policy compute the same."""
    with standing_in(remote.address, change_request=as_base) as stand_in:
        loop, _ = on_server(tmp_path, remote, address=stand_in.address)
        before = weights_of(loop)
        with pytest.raises(UserError, match=f"The server {stand_in.address}/v1 does not use the weights in training"):
            loop.step()
    assert torch.equal(weights_of(loop), before)


def test_a_server_that_drops_an_adapter_later_stops_the_run(remote: Remote, tmp_path: Path) -> None:
    with standing_in(remote.address) as stand_in:
        loop, _ = on_server(tmp_path, remote, address=stand_in.address, rate=0.5)
        loop.step()
        stand_in.change_request = as_base
        with pytest.raises(UserError, match=r"does not apply the adapter\. The completions do not come from"):
            loop.step()


def without_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "logprobs": None}


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if name != "token_ids"}


def of_another_tokenizer(choice: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "prompt_token_ids": choice["prompt_token_ids"][1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_logprobs, "does not return the log-probability of each token"),
        (without_ids, "does not return token ids"),
        (of_another_tokenizer, "has another tokenizer: tiny splits a text into other tokens"),
    ],
)
def test_a_server_that_cannot_serve_rollouts_is_refused_before_training(
    remote: Remote, tmp_path: Path, change: Any, message: str
) -> None:
    with (
        standing_in(remote.address, change_choice=change) as stand_in,
        pytest.raises(UserError, match=message) as error,
    ):
        on_server(tmp_path, remote, address=stand_in.address)
    assert "\n" not in str(error.value)


def test_a_server_of_another_base_stops_the_run(remote: Remote, tmp_path: Path) -> None:
    plain_llama(torch.float32, 0.1).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with served(tmp_path / "other", adapters=remote.folder) as running:
        loop, _ = on_server(tmp_path, remote, address=running.server.address)
        with pytest.raises(UserError, match=r"disagree: .*max_gap is 0\.001\. It serves another base"):
            loop.step()


def test_a_server_that_is_not_there_is_named(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 does not answer: .* Is the server running\?"):
        on_server(tmp_path, remote, address="http://127.0.0.1:9")


def test_a_server_that_has_lost_the_adapter_is_named(remote: Remote, tmp_path: Path) -> None:
    """As one that was restarted."""
    before = set(remote.folder.iterdir())
    loop, _ = on_server(tmp_path, remote, rate=0.0, steps=3)
    loop.step()
    loop.step()
    (directory,) = set(remote.folder.iterdir()) - before
    for file in directory.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no longer has the adapter in training: .* resume the run"):
        loop.step()


def test_a_server_that_does_not_see_the_folder_is_named(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    loop, _ = on_server(tmp_path, replace(remote, folder=tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"does not load the adapter .*elsewhere.* tunesmith serve with --adapters"):
        loop.step()


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [("full", {}, "no adapter"), ("ia3", {}, "an adapter of type IA3"), ("lora", {"dora": True}, "DoRA")],
)
def test_what_a_server_cannot_load_is_refused(method: str, options: dict[str, Any], found: str, tmp_path: Path) -> None:
    model = method_of(method, **options).apply(tiny_llama(), 0)
    settings = SamplingServer(server="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=f"the server loads LoRA adapters, and this run trains {found}"):
        ServerSampler(model, byte_tokenizer(), settings, tmp_path)


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora", "initialization": "pissa"}])
def test_a_recipe_that_moves_the_base_samples_on_no_server(method: dict[str, Any]) -> None:
    sampler = {"server": "http://gpu:8000/v1"}
    values = {
        "base": "base", "data": {"train": "rows.jsonl"}, "method": method,
        "objective": {"kind": "grpo", "rewards": "exact", "sampler": sampler},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"objective\.sampler: the server gets an adapter before each phase"):
        Recipe.load(values)


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="must be an address, such as http://gpu:8000/v1"):
        SamplingServer(server="gpu:8000")


def test_the_stand_in_is_as_strict_as_vllm(remote: Remote) -> None:
    """A name that is loaded already is refused."""
    stand_in = StandIn(remote.address, loaded={"one"})
    assert stand_in.reply("/v1/load_lora_adapter", {"lora_name": "one", "lora_path": "."})[0] == 400


def test_a_request_has_the_samples_of_one_prompt() -> None:
    """Their numbers follow each other, as its seed makes them, and it has no more than a server takes."""
    prompts = [[1], [1], [1], [2], [2], [2], [2]]
    assert list(_parts(prompts, [0, 1, 5, 6, 7, 8, 9], 3)) == [(0, 2), (2, 3), (3, 6), (6, 7)]
