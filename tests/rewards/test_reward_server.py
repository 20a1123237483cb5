"""A reward model on a server: its scores in this process, vLLM's requests, and one line for each failure."""

import json
import logging
import math
import socket
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pooling_stand_in import Body, RefusedError, pooling_server
from reward_models import liked_run
from running_server import Served, served
from small_models import stored_base

import tunesmith
from tunesmith.config.reward import RewardConfig
from tunesmith.errors import UserError
from tunesmith.inference import openai_client
from tunesmith.rewards import Rewards, Sampled

KEY = "sk-much-too-secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return liked_run(tmp_path_factory.mktemp("liked"))


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Served]:
    with served(run) as running:
        yield running


def opened(model: str, **options: Any) -> Rewards:
    return Rewards.open([RewardConfig(function="classifier", options={"model": model, "reads": "chat", **options})])


def scores(rewards: Rewards, answers: list[str], prompts: list[Any] | None = None) -> list[float]:
    return [float(value) for value in rewards(Sampled(prompts or ["q1"] * len(answers), answers)).total]


def length(body: Body) -> float:
    """A score: the length of the answer, or of the text."""
    return float(len(body["input"] if "input" in body else body["messages"][-1]["content"]))


def test_scores_are_those_of_the_same_model_in_this_process(server: Served, run: Path) -> None:
    """Also of chats with several turns, and of answers that are empty, forge an end, or are beyond the context."""
    answers = ["yes 1", "no", "", "no<|im_end|>", "yes " * 2000, "<think>hm</think>no"]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q2"}]
    prompts: list[Any] = ["q1", *[turns] * 5]
    there = scores(opened(f"{server.address}/v1#tiny"), answers, prompts)
    model = tunesmith.load(run, precision="fp32")
    assert there[:3] == pytest.approx(model.reward(prompts[:3], answers[:3]), abs=1e-5)
    here = scores(opened(str(run), device="cpu"), answers, prompts)
    assert there == pytest.approx(here, abs=2e-2)  # in bf16 where that is faster
    assert [there[3], there[5]] == pytest.approx([there[1]] * 2, abs=1e-5)


def test_ppo_learns_from_a_server_what_it_learns_from_the_same_model_here(
    server: Served, run: Path, tmp_path: Path
) -> None:
    """The model here is in bf16 where that is faster. A step of AdamW follows the sign of a gradient: if steps were
    large, a rounded reward could lead to other answers in the second phase."""
    base = stored_base(tmp_path / "base", seed=1)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"q{n}"}) for n in range(4)), encoding="utf-8")
    losses, rewards = [], []
    for number, reward in enumerate((str(run), f"{server.address}/v1#tiny")):
        recipe = {
            "base": {"path": str(base)},
            "data": {"train": [str(tmp_path / "rows.jsonl")], "held_out": 0},
            "objective": {"kind": "ppo", "reward": reward, "prompts": 4, "passes": 1, "max_new_tokens": 6},
            "method": {"kind": "full"},
            "train": {"steps": 2, "precision": "fp32", "learning_rate": 1e-5},
        }
        trained = tunesmith.train(recipe, tmp_path / str(number))
        steps = [event for event in trained.events() if event["event"] == "step"]
        rewards.append([step["reward"] for step in steps])
        losses.append([step["loss"] for step in steps])
    assert len(rewards[0]) == 2
    assert rewards[0][0] != rewards[0][1]
    np.testing.assert_allclose(rewards[1], rewards[0], atol=2e-2)
    np.testing.assert_allclose(losses[1], losses[0], atol=2e-2)


def test_each_chat_is_a_request_as_vllm_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key of the environment, and as many at the same time as `concurrent` says."""
    monkeypatch.setenv("TUNESMITH_API_KEY", KEY)
    with pooling_server(length, seconds=0.05) as stand_in:
        rewards = opened(stand_in.url, concurrent=3)
        assert scores(rewards, ["ab", "abcd", "", "abc", "a", "abcde"]) == [2, 4, 0, 3, 1, 5]
    assert stand_in.most == 3
    assert set(stand_in.keys) == {f"Bearer {KEY}"}
    first = next(body for body in stand_in.asked if body["messages"][-1]["content"] == "ab")
    assert first == {
        "model": "wise",
        "messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "ab"}],
        "task": "classify",
        "use_activation": False,
        "truncate_prompt_tokens": -1,
    }


def test_the_first_model_of_the_server_is_asked_if_none_is_named() -> None:
    with pooling_server(length) as stand_in:
        assert scores(opened(stand_in.url.partition("#")[0]), ["ab"]) == [2]


@pytest.mark.parametrize(("reads", "expected"), [("answer", 4), ("completion", 23)])
def test_an_answer_or_a_completion_is_sent_as_a_text(reads: str, expected: int) -> None:
    with pooling_server(length) as stand_in:
        assert scores(opened(stand_in.url, reads=reads), ["<think>hm.</think>\nyes."]) == [expected]
        assert all("input" in body for body in stand_in.asked)


def entries(*values: Any) -> Callable[[Body], Any]:
    return lambda body: [{"data": value} for value in values]


def refuse(status: int, message: str) -> Callable[[Body], Any]:
    def score(body: Body) -> Any:
        raise RefusedError(status, message)

    return score


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (refuse(401, "Unauthorized"), r"/pooling answers 401: Unauthorized\. Set TUNESMITH_API_KEY to a key of the"),
        (refuse(500, "Out of memory."), r"/pooling answers 500: Out of memory\."),
        (refuse(400, "No chat template."), r"/pooling answers 400: No chat template\."),
        (
            refuse(404, "Not Found"),
            r"has no /pooling, so it serves no reward model\. Serve a reward",
        ),
        (entries([1.0], [2.0]), r"returned 2 scores for one text\. Serve a reward model"),
        (entries([[1.0], [2.0], [3.0]]), r"returned 3 values for one text, so wise is no reward model with one output"),
        (entries([math.nan]), r"returned the score nan, which is no finite number"),
        (entries([None]), r"returned the score None, which is no finite number"),
        (entries("AAAA"), r"returned the score 'AAAA', which is no finite number"),
        (lambda body: 1.0, r"gives the score 1 to different answers, as the softmax of one output does.*0\.11\.1"),
    ],
)
def test_a_server_that_does_not_score_is_refused_at_the_start(
    score: Callable[[Body], Any], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openai_client, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("TUNESMITH_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with pooling_server(score) as stand_in, pytest.raises(UserError, match=message) as error:
        opened(stand_in.url)
    assert str(error.value).startswith("rewards: classifier: http://127.0.0.1:")
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value) + caplog.text


def test_an_unknown_name_and_another_server_are_told_apart(tiny_model: Path, server: Served) -> None:
    with pooling_server(length) as stand_in:
        address = stand_in.url.partition("#")[0]
        with pytest.raises(UserError, match=rf"{address} has no model other\. It has wise: name one as {address}#wise"):
            opened(f"{address}#other")
    with pytest.raises(UserError, match=r"has no model other\. It has tiny"):
        opened(f"{server.address}/v1#other")
    with served(tiny_model) as writer, pytest.raises(UserError, match="tiny writes text, so /pooling is not for it"):
        opened(f"{writer.address}/v1#tiny")


def test_a_server_that_is_silent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"does not answer: .*refused.* Is the server running\?"):
            opened(f"http://127.0.0.1:{unused.getsockname()[1]}/v1#wise")
    monkeypatch.setattr(openai_client, "SECONDS", 0.1)
    with pooling_server(length, seconds=1.0) as stand_in, pytest.raises(UserError, match="does not answer: timed out"):
        opened(stand_in.url)


def test_options_of_a_model_in_this_process_are_refused() -> None:
    for name, value in {"label": "good", "device": "cpu"}.items():
        with pytest.raises(UserError, match=f"is a server, and options.{name} is for a model in this process"):
            opened("http://127.0.0.1:1/v1#wise", **{name: value})


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "PAUSES", (0.0, 0.0))
    numbers = count()

    def score(body: Body) -> float:
        if next(numbers) % 3 < 2:
            raise RefusedError(503, "Busy")
        return length(body)

    with pooling_server(score) as stand_in:
        assert scores(opened(stand_in.url, concurrent=1), ["ab", "abc"]) == [2, 3]


def test_a_failure_in_training_names_the_function() -> None:
    values = iter([0.5, 0.25, math.inf])
    with pooling_server(lambda body: next(values)) as stand_in:
        rewards = opened(stand_in.url)
        with pytest.raises(UserError, match=r"^The reward function classifier: http.* returned the score inf"):
            scores(rewards, ["ab"])
