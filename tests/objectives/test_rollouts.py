"""Rollouts: they come from the weights in training, at the temperature of training, or the run stops."""

from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rollouts import pretrained_llama, resumed, rollouts_over, shift_log_probs, weights_of
from small_models import randomize

from tunesmith.engine.interrupt import Interruption
from tunesmith.engine.loop import Loop
from tunesmith.errors import UserError
from tunesmith.objectives.grpo import GRPOLoss
from tunesmith.objectives.sampler_checks import MOST_GAP


def test_sampler_and_trainer_agree_and_the_run_learns(tmp_path: Path) -> None:
    loop, events = rollouts_over(tmp_path, steps=2)
    before = weights_of(loop)
    loop.step()
    loop.step()
    steps = [event for event in events if event["event"] == "step"]
    assert not torch.equal(weights_of(loop), before)
    for event in steps:
        assert event["sampler_gap"] < 1e-5
        assert event["completions"] == 8
        assert abs(event["nll"] - event["entropy"]) < 1.5


def samples_from_the_base(loop: Loop) -> None:
    """As an engine does that never loads the adapter."""
    phases = loop.phases
    assert phases is not None
    for name in ("sample", "score"):
        own = getattr(phases.sampler, name)

        def without(*arguments: Any, own: Any = own) -> Any:
            with loop.model.disable_adapter():
                return own(*arguments)

        setattr(phases.sampler, name, without)


def test_a_sampler_that_ignores_the_adapter_stops_the_run(tmp_path: Path) -> None:
    """https://github.com/unslothai/unsloth/issues/8701"""
    loop, _ = rollouts_over(tmp_path, method="lora")
    loop.step()
    randomize(loop.model)
    samples_from_the_base(loop)
    with pytest.raises(UserError, match="The sampler and the trainer disagree"):
        loop.step()


def test_a_sampler_that_ignores_a_new_adapter_stops_the_run_at_its_first_step(tmp_path: Path) -> None:
    """Where the adapter is still zero, so that base and policy compute the same."""
    loop, _ = rollouts_over(tmp_path, method="lora")
    samples_from_the_base(loop)
    before = weights_of(loop)
    with pytest.raises(UserError, match="The sampler does not use the weights in training"):
        loop.step()
    assert torch.equal(weights_of(loop), before)


def test_weights_that_change_between_sampling_and_learning_stop_the_run(tmp_path: Path) -> None:
    loop, _ = rollouts_over(tmp_path)
    loop.step()
    assert loop.phases is not None
    sample = loop.phases.sampler.sample

    changed = []

    def stale(*arguments: Any) -> Any:
        found = sample(*arguments)
        with torch.no_grad():
            loop.model.lm_head.weight.mul_(1.05)
        changed.append(weights_of(loop))
        return found

    loop.phases.sampler.sample = stale  # type: ignore[method-assign]
    with pytest.raises(UserError, match="The sampler and the trainer disagree"):
        loop.step()
    assert torch.equal(weights_of(loop), changed[0])
    assert loop.state.step == 1


@pytest.mark.parametrize("wrong", [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}])
def test_another_temperature_or_fewer_tokens_in_sampling_stop_the_run(tmp_path: Path, wrong: dict[str, Any]) -> None:
    loop, _ = rollouts_over(tmp_path, group_size=16, max_new_tokens=16, steps=3)
    assert loop.phases is not None
    sample = loop.phases.sampler.sample
    loop.phases.sampler.sample = lambda prompts, numbers, sampling: sample(  # type: ignore[method-assign]
        prompts, numbers, type(sampling)(**{**vars_of(sampling), **wrong})
    )
    with pytest.raises(UserError, match="do not come from the policy"):
        loop.fit(Interruption())


def vars_of(sampling: Any) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}


def test_the_right_temperature_is_never_taken_for_a_wrong_one(tmp_path: Path) -> None:
    loop, _ = rollouts_over(tmp_path, temperature=0.7, group_size=16, max_new_tokens=12, rate=0.0, steps=3)
    for _ in range(3):
        loop.step()
    surprise, variance = (loop.objective.state()[name] for name in ("surprise", "variance"))
    assert abs(surprise) < 4 * np.sqrt(variance)


class Killed(BaseException):
    """Ends a process at any line."""


SEVERAL: dict[str, Any] = {"steps": 6, "passes": 2, "minibatches": 2, "beta": 0.05}
"""Four steps of each phase: the second one begins at step 5."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    loop, _ = rollouts_over(tmp_path_factory.mktemp("whole"), **SEVERAL)
    loop.fit(Interruption())
    return weights_of(loop)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_killed_between_steps_of_a_phase_resumes_to_the_same_bits(
    uninterrupted: torch.Tensor, tmp_path: Path, step: int
) -> None:
    loop, _ = rollouts_over(tmp_path, **SEVERAL)
    for _ in range(step):
        loop.step()
    loop.checkpoint()
    loop.step()  # lost
    again, more = resumed(tmp_path, **SEVERAL)
    again.fit(Interruption())
    assert torch.equal(weights_of(again), uninterrupted)
    assert [event["step"] for event in more if event["event"] == "step"] == list(range(step + 1, 7))


@pytest.mark.parametrize("kind", ["online_dpo", "best_of_n"])
def test_what_is_kept_of_the_samples_is_in_the_checkpoint(kind: str, tmp_path: Path) -> None:
    """Killed after the first of four steps on pairs, or on the best answers: it resumes to the same bits."""
    several: dict[str, Any] = {"kind": kind, "steps": 4, "passes": 2, "minibatches": 2, "max_kl": 99.0}
    whole, _ = rollouts_over(tmp_path / "whole", **several)
    whole.fit(Interruption())
    loop, _ = rollouts_over(tmp_path / "killed", **several)
    loop.step()
    loop.checkpoint()
    again, _ = resumed(tmp_path / "killed", **several)
    again.fit(Interruption())
    assert torch.equal(weights_of(again), weights_of(whole))


def test_a_run_killed_while_it_samples_resumes_to_the_same_bits(uninterrupted: torch.Tensor, tmp_path: Path) -> None:
    loop, _ = rollouts_over(tmp_path, **SEVERAL)
    assert loop.phases is not None
    paged = loop.phases.sampler._paged
    assert paged is not None
    compute, calls = paged.compute, []

    def killed(*arguments: Any) -> Any:
        calls.append(loop.state.step)
        if calls.count(4) == 3:  # some tokens of the second phase
            raise Killed
        return compute(*arguments)

    paged.compute = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.fit(Interruption())
    again, _ = resumed(tmp_path, **SEVERAL)
    assert again.state.step == 4
    again.fit(Interruption())
    assert torch.equal(weights_of(again), uninterrupted)


def test_steps_do_not_depend_on_how_rows_are_batched(tmp_path: Path) -> None:
    """A group in one row, in rows of single completions, and one batch for each row."""
    found = []
    for name, tokens in (("one", 4096), ("many", 25)):
        loop, events = rollouts_over(tmp_path / name, tokens_per_batch=tokens, steps=1, rate=2.0**24, settings=PLAIN)
        loop.step()
        assert loop.phases is not None
        assert loop.phases.collected is not None
        found.append((len(loop.phases.collected.table), weights_of(loop), events[-1]["grad_norm"]))
    (few, weights, norm), (many, others, other_norm) = found
    assert few == 2
    assert many == 8
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-5)
    assert other_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "max_sampler_weight": 1.5, "skip_truncated": True}])
def test_one_step_compares_by_its_own_pass_what_several_compare_before(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights and figures, with a forward pass less; also if a batch ran out of memory and came again. The
    sampler is made to report half and twice the probability of each other token."""
    monkeypatch.setitem(MOST_GAP, torch.float32, 0.7)
    found, passes = [], []
    for name, in_step, fails in (("before", False, False), ("in step", True, False), ("again", True, True)):
        monkeypatch.setattr(GRPOLoss, "compares_in_step", in_step)
        loop, events = rollouts_over(
            tmp_path / name, tokens_per_batch=100, steps=1, rate=2.0**24, settings=PLAIN, prompts=4, **options
        )
        calls = count_scores(loop)
        shift_log_probs(loop)
        if fails:
            fail_once_at_second_batch(loop, monkeypatch)
        loop.step()
        event = events[-1]
        names = ("sampler_gap", "sampler_gap_max", "entropy", "nll", "loss", "reward", "ratio", "clipped")
        figures = {name: event[name] for name in names}
        state = {name: loop.objective.state()[name] for name in ("surprise", "variance")}
        found.append((weights_of(loop), figures | state))
        passes.append(len(calls))
        assert any(event["event"] == "warning" for event in events) is fails
    (weights, figures), *others = found
    assert (figures["ratio"], figures["clipped"]) == (pytest.approx(1, abs=1e-4), 0)
    for other, same in others:
        torch.testing.assert_close(other, weights, rtol=1e-4, atol=1e-5)
        assert same == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert passes[0] == passes[1] + 1


def count_scores(loop: Loop) -> list[int]:
    """A number for each time that the trainer scores completions outside of a step."""
    objective: Any = loop.objective
    scores, calls = objective.scores, list[int]()

    def counted(*arguments: Any) -> Any:
        calls.append(len(calls))
        return scores(*arguments)

    objective.scores = objective._checks._scores = counted
    return calls


def fail_once_at_second_batch(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, number = loop.objective.loss, count()

    def failing(*arguments: Any) -> Any:
        if next(number) == 1:
            raise MemoryError
        return loss(*arguments)

    monkeypatch.setattr(loop.objective, "loss", failing)


PLAIN = {"betas": (0.0, 0.999), "eps": 2.0**27, "max_grad_norm": 1e9, "weight_decay": 0.0}
"""Gradient descent, up to a factor."""


ANSWERS = ("yes", "no", "maybe")


@pytest.fixture(scope="module")
def pretrained() -> Any:
    return pretrained_llama(ANSWERS, ("one", "two", "three", "four"), steps=100)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grpo", {"group_size": 8}),
        ("ppo", {"group_size": 8, "passes": 2, "kl_weight": 0.01}),
        ("online_dpo", {"group_size": 4, "beta": 0.2}),
        ("best_of_n", {"group_size": 4}),
    ],
)
def test_lora_learns_which_answer_is_rewarded(pretrained: Any, tmp_path: Path, kind: str, options: Any) -> None:
    """A base that gives each of three answers equally often comes to give one of them."""
    loop, events = rollouts_over(
        tmp_path,
        deepcopy(pretrained),
        lambda text: float(text == "no"),
        kind,
        "lora",
        steps=12,
        rate=5e-3,
        prompts=4,
        **options,
    )
    first = loop.evaluate()
    for _ in range(12):
        loop.step()
    last = loop.evaluate()
    assert first is not None
    assert last is not None
    rewards = [event["reward"] for event in events if event["event"] == "step" and "reward" in event]
    assert rewards[0] < 0.7
    assert np.mean(rewards[-3:]) > 0.75
    assert last["reward"] > first["reward"]
    assert last["loss"] == -last["reward"]
    assert first["reward_interval"][0] <= first["reward"] <= first["reward_interval"][1]
