"""A run stays within its memory: what is planned before loading, and the pass over the largest batch before step 1."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_loop import TOKENS, SquaredErrors, loop_over, named, table_of, weight_of
from transformers import LlamaConfig

from tunesmith.config.recipe import Recipe
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.loop import Loop
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.planner.device import Device, this_device
from tunesmith.planner.plan import Plan, plan_run
from tunesmith.planner.processor_time import busy_message
from tunesmith.run import Event, MetricsFile, Run
from tunesmith.training import memory_guard
from tunesmith.training.memory_guard import _seconds_per_token as time_of
from tunesmith.training.memory_guard import _stay_within_limit as stay_within_limit
from tunesmith.training.memory_guard import first_pass, plan_of_run

CPU = torch.device("cpu")
POINTS = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (1.5, 0.5), (2.5, 2.0), (0.5, 1.0), (1.2, 2.2), (0.7, 3.0)]


class Recorded(SquaredErrors):
    """Squared errors. The first passes raise the given errors.

    Attributes:
        taken: the rows of each pass; a short pass runs several times, to be timed.
    """

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.taken: list[tuple[int, ...]] = []

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        self.taken.append(batch.rows)
        if self.errors:
            raise self.errors.pop(0)
        return super().loss(model, batch)


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("can't allocate memory")


def one_step_of(rows: int, directory: Path, *errors: Exception, **train: Any) -> tuple[Loop, list[Event], Recorded]:
    """A loop whose only step takes all of its rows in one batch, its events, and its objective."""
    objective = Recorded(*errors)
    loop, events = loop_over(
        directory, POINTS[:rows], objective=objective, batch=rows, step=rows, steps=1, start=0.5, **train
    )
    loop.model.dtype = torch.float32
    return loop, events, objective


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a Llama of one small block, without weights."""
    directory = tmp_path_factory.mktemp("base")
    LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    ).save_pretrained(directory)
    return directory


def recipe_of(base: Path, **train: Any) -> Recipe:
    fields = {"steps": 1, "tokens_per_step": 512, "shuffle": False, **train}
    return Recipe.model_validate({"base": {"path": str(base)}, "data": {"train": "rows.jsonl"}, "train": fields})


def rows_of(tokens: int) -> Any:
    """Eight training rows of that many tokens."""
    return SimpleNamespace(train=CausalLMHead().dummy_rows([tokens] * 8), held_out=None)


@pytest.fixture(scope="module")
def plan(base: Path) -> Plan:
    """The plan of a step of eight rows on this machine."""
    batch_plan = BatchPlan.of(recipe_of(base), rows_of(TOKENS).train)
    return plan_run(batch_plan, torch.float32, this_device(CPU))


def with_batches(plan: Plan, tokens_per_batch: int) -> Plan:
    """The same plan with batches of that size."""
    return replace(plan, batch_plan=replace(plan.batch_plan, tokens_per_batch=tokens_per_batch))


# The plan before anything is loaded


@pytest.fixture
def quick(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning simulates nothing: `plan_run` gives the plan with its arguments, `plan_within` also checkpoints."""

    def planned(batch_plan: BatchPlan, dtype: torch.dtype, device: Device, available: int) -> Plan:
        return replace(plan, batch_plan=batch_plan, dtype=dtype, device=device, available=available)

    monkeypatch.setattr(memory_guard, "plan_run", planned)
    monkeypatch.setattr(memory_guard, "plan_within", lambda *given: replace(planned(*given), checkpointed=1))
    monkeypatch.setattr(memory_guard, "available_memory", lambda device: 63 * 10**9)


def planned_run(base: Path, directory: Path, **train: Any) -> Plan | None:
    """The plan of a run in that directory, of eight rows of 64 tokens."""
    return plan_of_run(recipe_of(base, **train), Run(directory), rows_of(64), torch.float32, CPU)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("limit", [None, "64GB"])
def test_a_resumed_run_keeps_the_batch_size_of_its_memory_event(base: Path, tmp_path: Path, limit: str | None) -> None:
    def tokens_per_batch() -> int:
        plan = planned_run(base, tmp_path, memory_limit=limit)
        assert plan is not None
        return plan.batch_plan.tokens_per_batch

    write = MetricsFile(tmp_path / "metrics.jsonl")
    assert tokens_per_batch() == 512
    write({"event": "start", "tokens_per_batch": 256})
    write({"event": "memory", "tokens_per_batch": 128})
    assert tokens_per_batch() == 128


@pytest.mark.usefixtures("quick")
def test_a_plan_is_within_the_available_memory_or_the_limit(base: Path, tmp_path: Path) -> None:
    for limit, available, checkpointed in ((None, 63 * 10**9, 0), ("64GB", 64 * 10**9, 1)):
        plan = planned_run(base, tmp_path, memory_limit=limit)
        assert plan is not None
        assert (plan.available, plan.checkpointed) == (available, checkpointed)
        assert (plan.dtype, plan.device.is_this_cpu, plan.batch_plan.longest) == (torch.float32, True, 64)


@pytest.mark.usefixtures("quick")
def test_a_run_that_does_not_fit_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_guard, "available_memory", lambda device: 1_000)
    monkeypatch.setattr(memory_guard, "refusal", lambda plan, dtype: f"{plan.available} bytes in {dtype} are too few")
    with pytest.raises(UserError, match=r"^1000 bytes in torch\.float32 are too few$"):
        planned_run(base, tmp_path)


def test_a_run_whose_memory_cannot_be_predicted_has_no_plan(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Plan:
        raise UserError("its memory and time cannot be predicted")

    monkeypatch.setattr(memory_guard, "plan_run", refuse)
    assert planned_run(base, tmp_path) is None


# Within a limit


def test_a_batch_over_the_limit_leads_to_plans_for_smaller_and_smaller_targets(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, objective = one_step_of(8, tmp_path)
    asked: list[Any] = []

    def plan_in_half(batch_plan: BatchPlan, *others: Any) -> Plan:
        asked.append((batch_plan.tokens_per_batch, *others))
        return with_batches(plan, batch_plan.tokens_per_batch // 2)

    def peak_of_the_last_pass(device: torch.device) -> int:
        assert device == CPU
        return 8_000 + 100 * TOKENS * len(objective.taken[-1])

    monkeypatch.setattr(memory_guard, "plan_within", plan_in_half)
    monkeypatch.setattr(memory_guard, "peak_memory", peak_of_the_last_pass)
    kept = stay_within_limit(loop, with_batches(plan, 80), 10_000)
    # batches of 80, 40 and 20 tokens take 16,000, 12,000 and 10,000 bytes: 6,000, 2,000 and 0 too many
    others = (torch.float32, plan.device)
    assert asked == [(80, *others, 10_000 - 6_000), (40, *others, 10_000 - 6_000 - 2_000)]
    assert kept.batch_plan.tokens_per_batch == loop.tokens_per_batch == 20
    assert loop.batches.step(0) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert list(dict.fromkeys(objective.taken)) == [tuple(range(8)), (0, 1, 2, 3), (0, 1)]
    assert weight_of(loop) == 0.5  # the passes train nothing
    assert not loop.masters.grad.any()


def test_neither_earlier_peaks_nor_freed_memory_count_against_the_limit(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, objective = one_step_of(8, tmp_path)
    calls: list[tuple[str, bool]] = []
    for name in ("release_freed_memory", "forget_peak", "peak_memory"):

        def call(*_: Any, name: str = name) -> int:
            calls.append((name, bool(objective.taken)))
            return 1_000

        monkeypatch.setattr(memory_guard, name, call)
    assert stay_within_limit(loop, plan, 1_000) is plan
    # before the pass, before the pass, after the pass
    assert calls == [("release_freed_memory", False), ("forget_peak", False), ("peak_memory", True)]


def test_a_plan_within_a_limit_is_applied_before_its_batch_is_tried(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, objective = one_step_of(8, tmp_path)
    checkpointed: list[Any] = []

    def enable(model: Any, blocks: int) -> None:
        checkpointed.append((model, blocks, len(objective.taken)))

    monkeypatch.setattr(memory_guard, "enable_activation_checkpointing", enable)
    monkeypatch.setattr(memory_guard, "peak_memory", lambda device: 0)
    stay_within_limit(loop, plan, 1_000)
    assert checkpointed == []
    objective.taken.clear()
    stay_within_limit(loop, replace(plan, checkpointed=3), 1_000)
    assert checkpointed == [(loop.model, 3, 0)]
    assert objective.taken


# The pass over the largest batch


def test_memory_that_runs_out_in_the_first_pass_splits_the_batch_in_two(tmp_path: Path) -> None:
    loop, events, objective = one_step_of(4, tmp_path, out_of_memory())
    time_of(loop, loop.batches.table, [0, 1, 2, 3])
    assert list(dict.fromkeys(objective.taken)) == [(0, 1, 2, 3), (0, 1)]
    assert loop.state.most_tokens == 20
    (warning,) = named(events, "warning")
    assert warning["message"].startswith("Memory ran out with 40 tokens in a batch.")
    assert weight_of(loop) == 0.5
    assert not loop.masters.grad.any()


def test_memory_that_runs_out_with_a_single_row_ends_the_first_pass(tmp_path: Path) -> None:
    loop, _, objective = one_step_of(2, tmp_path, *(out_of_memory() for _ in range(3)))
    with pytest.raises(UserError, match=r"single row of 10 tokens \(points\.jsonl row 1\)"):
        time_of(loop, loop.batches.table, [0, 1])
    assert objective.taken == [(0, 1), (0,)]


@pytest.mark.parametrize("error", [RuntimeError("something else"), ValueError("something else")])
def test_another_error_in_the_first_pass_is_not_caught(tmp_path: Path, error: Exception) -> None:
    loop, events, objective = one_step_of(4, tmp_path, *[error] * 4)
    with pytest.raises(type(error), match="something else"):
        time_of(loop, loop.batches.table, [0, 1, 2, 3])
    assert len(objective.taken) == 1
    assert (named(events, "warning"), loop.state.most_tokens) == ([], 0)


def test_a_batch_that_was_split_before_is_tried_in_its_largest_part(tmp_path: Path) -> None:
    loop, _, objective = one_step_of(5, tmp_path)
    loop.state.most_tokens = 30
    time_of(loop, loop.batches.table, [0, 1, 2, 3, 4])
    assert set(objective.taken) == {(0, 1, 2)}


def test_the_forecast_is_for_what_is_left_of_the_run(plan: Plan, tmp_path: Path) -> None:
    batch_plan = BatchPlan.of(plan.batch_plan.recipe, table_of(POINTS[:5]), table_of(POINTS[:3]))
    times = {}
    for done in (0, 2):
        loop, events = loop_over(tmp_path, POINTS[:5], steps=5, held_out=POINTS[:3])
        loop.state.step = done
        predicted = forecast_of(loop, events, None, batch_plan)["time"]
        assert predicted["parts"]["training"] == pytest.approx((5 - done) * predicted["seconds_per_step"])
        assert predicted["parts"]["training"] * predicted["tokens_per_second"] == pytest.approx((5 - done) * TOKENS)
        assert predicted["total_seconds"] == pytest.approx(sum(predicted["parts"].values()))
        assert predicted["parts"]["checkpoints"] == pytest.approx(12 * (5 - done) / 2e8)  # one weight, in each step
        times[done] = predicted["parts"]
    assert times[2]["evaluation"] > 0


# Its events


def forecast_of(loop: Loop, events: list[Event], plan: Plan | None, batch_plan: BatchPlan) -> dict[str, Any]:
    """The forecast of the first pass, which must be the last event."""
    forecast = first_pass(loop, plan, batch_plan, time.perf_counter() - 7)
    assert events[-1] == {"event": "forecast", **forecast}
    assert 7 < forecast["time"]["parts"]["start"] < 60
    assert set(forecast["time"]) == {"seconds_per_step", "tokens_per_second", "total_seconds", "parts"}
    return forecast


def test_a_forecast_has_the_plans_memory_and_the_passs_time(plan: Plan, tmp_path: Path) -> None:
    loop, events, objective = one_step_of(8, tmp_path)
    forecast = forecast_of(loop, events, plan, plan.batch_plan)
    assert {name: forecast[name] for name in ("memory", "fits", "device")} == plan.to_dict(timed=False)
    assert "time" not in vars(plan)  # no operations were timed for it
    assert [event["event"] for event in events] == ["forecast"]
    assert set(objective.taken) == {tuple(range(8))}


def test_memory_of_the_first_pass_is_given_back(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, events, objective = one_step_of(8, tmp_path)
    passes: list[int] = []
    monkeypatch.setattr(memory_guard, "release_freed_memory", lambda: passes.append(len(objective.taken)))
    forecast_of(loop, events, plan, plan.batch_plan)
    assert passes == [len(objective.taken)]


@pytest.mark.parametrize(
    ("share", "seconds", "again"),
    [
        pytest.param(0.19, 4.0, None, id="idle"),
        pytest.param(0.2, 4.0, (0, 1, 2), id="busy, and a long pass"),
        pytest.param(0.2, 0.4, None, id="busy, and a short pass, which was timed several times"),
        pytest.param(0.2, 400.0, None, id="busy, and a single row takes long"),
    ],
)
def test_a_busy_machine_leads_to_a_warning_and_to_a_second_measurement_of_some_rows(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, seconds: float, again: Any
) -> None:
    loop, events, _ = one_step_of(8, tmp_path)
    monkeypatch.setattr(memory_guard, "taken_by_others", lambda before, after: share)
    monkeypatch.setattr(memory_guard, "AGAIN", 1.9)  # seconds, in which a pass of 80 tokens in 4 s does three rows
    timed: list[tuple[int, ...]] = []

    def pass_over(loop: Loop, table: Any, rows: list[int]) -> tuple[float, float]:
        """The first pass takes the given seconds, and evaluating half of that; then all is ten times as fast."""
        timed.append(tuple(rows))
        per_token = seconds / (8 * TOKENS) / (10 if len(timed) > 1 else 1)
        return per_token, per_token / 2

    monkeypatch.setattr(memory_guard, "_seconds_per_token", pass_over)
    forecast = forecast_of(loop, events, plan, plan.batch_plan)
    assert timed == [tuple(range(8)), *([] if again is None else [again])]
    assert forecast["time"]["seconds_per_step"] == pytest.approx(seconds / (1 if again is None else 10))
    messages = [event["message"] for event in named(events, "warning")]
    assert messages == ([busy_message(share)] if share >= 0.2 else [])


def test_a_limits_choices_are_an_event_before_the_forecast(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, events, _ = one_step_of(8, tmp_path, memory_limit="10KB")
    peaks = iter([10_001, 10_000])
    monkeypatch.setattr(memory_guard, "plan_within", lambda *_: with_batches(plan, 20))
    monkeypatch.setattr(memory_guard, "peak_memory", lambda _: next(peaks))
    forecast_of(loop, events, plan, plan.batch_plan)
    assert events[0] == {
        "event": "memory",
        "limit_bytes": 10_000,
        "checkpointed": 0,
        "blocks": 1,
        "tokens_per_batch": 20,
    }
    assert len(events) == 2


@pytest.mark.parametrize(("padded", "largest"), [(False, (0, 1)), (True, (0,))])
def test_without_a_plan_a_run_warns_and_still_tries_its_largest_batch(
    base: Path, tmp_path: Path, padded: bool, largest: tuple[int, ...]
) -> None:
    objective = Recorded()
    loop, events = loop_over(tmp_path, POINTS[:3], objective=objective, steps=1)
    batch_plan = BatchPlan(recipe_of(base), table_of(POINTS[:3], [30, 10, 25]), 40)
    loop.use_batches(batch_plan.layout(not padded).batches, 40)
    forecast = forecast_of(loop, events, None, batch_plan)
    (warning,) = named(events, "warning")
    assert warning["message"] == "Cannot predict the memory that Slope takes here (docs/planning.md)."
    assert set(objective.taken) == {largest}
    assert forecast["device"] == "cpu"
    assert set(forecast) == {"device", "time"}


def test_rows_of_half_a_second_are_timed_again_on_a_busy_machine(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, events, _ = one_step_of(8, tmp_path)
    monkeypatch.setattr(memory_guard, "taken_by_others", lambda before, after: 0.5)
    timed: list[tuple[int, ...]] = []

    def pass_over(loop: Loop, table: Any, rows: list[int]) -> tuple[float, float]:
        timed.append(tuple(rows))
        return 4.0 / (8 * TOKENS), 1.0

    monkeypatch.setattr(memory_guard, "_seconds_per_token", pass_over)
    forecast_of(loop, events, plan, plan.batch_plan)
    assert timed == [tuple(range(8)), (0,)], "a row takes exactly half a second"


def test_evaluations_are_forecast_with_the_speed_of_a_pass_without_gradients(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_guard, "_seconds_per_token", lambda loop, table, rows: (3e-3, 1e-3))
    batch_plan = BatchPlan.of(recipe_of(base, steps=5, evaluate_every=2), table_of(POINTS[:5]), table_of(POINTS[:3]))
    for done, training, evaluations in ((0, 5, 4), (2, 3, 2)):  # before the first step, and after 2, 4 and 5
        loop, events = loop_over(tmp_path, POINTS[:5], steps=5, held_out=POINTS[:3])
        loop.state.step = done
        parts = forecast_of(loop, events, None, batch_plan)["time"]["parts"]
        assert parts["training"] == pytest.approx(training * TOKENS * 3e-3)
        assert parts["evaluation"] == pytest.approx(evaluations * 3 * TOKENS * 1e-3)
