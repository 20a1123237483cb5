"""FLOPs, bytes and time of operations: by data sheet rates, by the op timer's rules, and in a step's time."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from by_hand import CPU_ELSEWHERE, CPU_HERE, GPU, a_batch_plan, a_plan, a_recipe, a_step, addition, product, shape

from tunesmith.ops import native
from tunesmith.planner import op_timer as op_timer_module
from tunesmith.planner.op_timer import LARGE, LARGE_FLOPS, OVERHEAD, SLOW_FLOPS, OpTimer
from tunesmith.planner.roofline import LAUNCH, REACHED_BY_MEMORY, REACHED_BY_PRODUCTS, of, seconds_on
from tunesmith.planner.trace import AttentionParameters, Operation, Trace, Watch


def attention(name: str, causal: int, documents: int, heads: int = 6, tokens: int = 40, keys: int = 50) -> Operation:
    queries, read = shape(tokens, heads, 32), shape(keys, 2, 32)
    kind = AttentionParameters(2, heads // 2, 32, 0.2, 0, causal, 0.0, 0)
    return Operation(name, (kind, shape(documents, 4, dtype=torch.int64), documents, queries, read, read, queries))


@pytest.mark.parametrize(
    ("operation", "flops"),
    [
        pytest.param(product(64, 32, 16), 2 * 64 * 32 * 16, id="mm"),
        pytest.param(
            Operation("aten.addmm.default", (shape(16), shape(64, 32), shape(32, 16)), (("beta", 1),)),
            2 * 64 * 32 * 16,
            id="addmm",
        ),
        pytest.param(
            Operation("aten.bmm.default", (shape(5, 64, 32), shape(5, 32, 16))), 2 * 5 * 64 * 32 * 16, id="bmm"
        ),
        pytest.param(
            Operation("aten.baddbmm.default", (shape(5, 64, 16), shape(5, 64, 32), shape(5, 32, 16))),
            2 * 5 * 64 * 32 * 16,
            id="baddbmm",
        ),
        pytest.param(addition(1000), 0, id="addition"),
        # q kᵀ and p v: 2 products of 2 · tokens · keys · dim each; a document has 50 / 2 keys
        pytest.param(attention("attention_bf16", 0, 2), 2 * 2 * 40 * 25 * 6 * 32, id="attention"),
        pytest.param(attention("attention_fp32", 1, 2), 2 * 40 * 25 * 6 * 32, id="causal attention"),
        pytest.param(attention("attention_backward_bf16", 0, 2), 5 * 2 * 40 * 25 * 6 * 32, id="its backward pass"),
        pytest.param(attention("attention_backward_fp32", 0, 2), 5 * 2 * 40 * 25 * 6 * 32, id="in fp32"),
    ],
)
def test_flops_of_products_and_attention_match_the_textbook(operation: Operation, flops: int) -> None:
    assert operation.flops == flops


def test_bytes_moved_count_every_tensor_including_those_in_lists() -> None:
    assert product(64, 32, 16).moved == 2 * (64 * 32 + 32 * 16 + 64 * 16)
    joined = Operation("aten.cat.default", ((shape(3, 5), shape(4, 5)), 0), (), (shape(7, 5),))
    assert joined.moved == 2 * (15 + 20 + 35)
    assert attention("attention_bf16", 1, 2).moved == 8 * 2 * 4 + 2 * 32 * (40 * 6 + 2 * 50 * 2 + 40 * 6)


def test_an_operations_precision_is_that_of_its_first_float_argument() -> None:
    ids = shape(7, dtype=torch.int64)
    assert Operation("aten.embedding.default", (ids, shape(9, 4))).precision == torch.bfloat16
    mixed = Operation("aten.add.Tensor", (shape(4, dtype=torch.float64), shape(4)))
    assert mixed.precision == torch.float64
    assert Operation("aten.add.Tensor", (ids, ids), (), (shape(3),)).precision == torch.float32


# --- on other devices: the roofline ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        pytest.param(product(4096, 4096, 4096), 2 * 4096**3 / (0.65 * 1e12), id="bound by arithmetic in bf16"),
        pytest.param(
            product(4096, 4096, 4096, torch.float32), 2 * 4096**3 / (0.65 * 2e11), id="bound by arithmetic in fp32"
        ),
        pytest.param(addition(10**6), 3 * 2 * 10**6 / (0.8 * 4e9), id="bound by memory"),
        pytest.param(product(4096, 8, 4096), 2 * (2 * 4096 * 8 + 4096**2) / (0.8 * 4e9), id="a thin product"),
        pytest.param(addition(8), 5e-6, id="at least the launch time"),
    ],
)
def test_on_other_devices_the_slower_of_arithmetic_and_memory_counts(operation: Operation, seconds: float) -> None:
    assert of(operation, GPU) == pytest.approx(seconds, rel=1e-12)
    assert (REACHED_BY_PRODUCTS, REACHED_BY_MEMORY, LAUNCH) == (0.65, 0.8, 5e-6)


def test_a_cpu_has_no_launch_time() -> None:
    tiny = addition(8, torch.float32)
    assert of(tiny, CPU_ELSEWHERE) == pytest.approx(3 * 4 * 8 / (0.8 * 4e9), rel=1e-12)


def test_on_other_devices_operations_are_multiplied_by_their_counts() -> None:
    one, other = product(4096, 4096, 4096), addition(10**6)
    seconds = seconds_on(GPU, OpTimer([5]))
    expected = 3 * of(one, GPU) + 0.5 * of(other, GPU)
    for recorded in (True, False):
        assert seconds({one: 3.0, other: 0.5}, recorded) == pytest.approx(expected, rel=1e-12)


# --- on this machine: the op timer -----------------------------------------------------------------------------------


def test_on_this_machine_timed_seconds_get_overhead_within_a_pass() -> None:
    one, other = product(8, 8, 8), addition(8)
    timer = OpTimer([5], seconds={one: 0.25, other: 0.5})
    seconds = seconds_on(CPU_HERE, timer)
    assert seconds({one: 3.0, other: 2.0}, False) == 3 * 0.25 + 2 * 0.5
    assert seconds({one: 3.0, other: 2.0}, True) == pytest.approx(1.75 + 5 * 45e-6, rel=1e-12)
    assert timer.total({one: 2.0}) == pytest.approx(0.5 + 2 * OVERHEAD, rel=1e-12)


def test_operations_too_large_to_run_are_estimated_by_rates() -> None:
    timer = OpTimer([5], rates={torch.bfloat16: (4e15, 1e15)})
    large, heavy = addition(2**29), product(2**15, 2**14, 2**9)
    assert large.moved > LARGE
    assert heavy.flops > LARGE_FLOPS
    assert timer.total({large: 1.0, heavy: 2.0}, recorded=False) == pytest.approx(
        large.moved / 1e15 + 2 * heavy.flops / 4e15, rel=1e-12
    )
    thin = product(2**28, 1, 1)
    assert timer._by_rates(thin) == thin.moved / 1e15  # bound by memory


def test_only_slow_products_are_not_run() -> None:
    slow = OpTimer([5], rates={torch.bfloat16: (0.9e10, 1e9), torch.float32: (1e12, 1e9)})
    heavy = product(2**12, 2**11, 2**10)  # 1.7e10 flops: 1.9 s in bf16, 17 ms in fp32
    assert heavy.flops > SLOW_FLOPS
    assert slow._is_large(heavy)
    assert not slow._is_large(product(2**12, 2**11, 2**10, torch.float32))
    assert not slow._is_large(product(2**11, 2**10, 2**10))  # 4.3e9 flops, below the limit
    many = attention("attention", 0, 1, heads=64, tokens=3000, keys=3000)
    assert many.flops > SLOW_FLOPS
    assert not slow._is_large(many)  # not a matrix product


def test_cpu_kernels_are_not_run_on_a_gpu() -> None:
    gpu_timer = OpTimer([5], device=torch.device("meta"))
    assert gpu_timer._is_large(Operation("rms_norm_bf16", (shape(4, 8),)))
    assert not gpu_timer._is_large(addition(8))
    assert not OpTimer([5])._is_large(Operation("rms_norm_bf16", (shape(4, 8),)))


def test_an_operation_is_timed_on_tensors_of_its_shapes() -> None:
    ids = shape(7, dtype=torch.int64)
    operations = [
        product(16, 8, 4),
        Operation("aten.cat.default", ((shape(3, 5), shape(4, 5)), 0), (), (shape(7, 5),)),
        Operation("aten.sum.dim_IntList", (shape(3, 5), (0,), True), (("dtype", torch.float32),)),
        Operation("aten.empty.memory_format", ((3, 5),), (("device", torch.device("cpu")),)),
        Operation("aten.embedding.default", (shape(9, 4), ids)),
    ]
    timer = OpTimer([5])
    for operation in operations:
        assert timer._timings(operation), operation.name
    total = timer._torch(operations[2])()
    assert (tuple(total.shape), total.dtype) == ((1, 5), torch.float32)
    assert total.tolist()[0] == pytest.approx([0.03] * 5, rel=0.01)  # small numbers, not zeros
    assert timer._torch(operations[1])().shape == (7, 5)
    assert timer._torch(operations[4])().shape == (7, 4)


def test_operations_that_cannot_run_on_their_own_are_estimated_by_rates() -> None:
    mismatched = Operation("aten.mm.default", (shape(3, 4), shape(5, 6)), (), (shape(3, 6),))
    timer = OpTimer([5], rates={torch.bfloat16: (1e6, 1e3)})
    assert timer._timings(mismatched) == []
    # 2 · 12 · 6 arithmetic operations at 1e6 a second, 2 · (12 + 30 + 18) bytes at 1e3
    assert timer.total({mismatched: 1.0}, recorded=False) == pytest.approx(0.12, rel=1e-12)


def test_an_operations_time_is_the_median_of_its_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = iter([3.0, 1.0, 2.0, 50.0, 7.0, 9.0])
    monkeypatch.setattr(OpTimer, "_timings", lambda self, _: [next(timings) / 1e4])
    monkeypatch.setattr(op_timer_module, "ENOUGH", 0.0)
    timer = OpTimer([5])
    one, other = addition(8), addition(16)
    timer._measure([one, other], 0.0)  # three rounds over both: 3, 2, 7 and 1, 50, 9
    assert timer.seconds == {one: 3e-4, other: 9e-4}


def test_short_operations_are_timed_twice_and_large_ones_with_cold_caches() -> None:
    cold_calls: list[bool] = []

    def timings(operation: Operation, seconds: float) -> list[float]:
        timer = OpTimer([5])
        timer._timed = lambda call, cold=True: cold_calls.append(cold) or seconds  # type: ignore[method-assign,func-returns-value]
        return timer._timings(operation)

    assert timings(addition(8), 0.0199) == [0.0199, 0.0199]
    assert timings(addition(8), 0.02) == [0.02]
    assert cold_calls == [False] * 3  # small enough for a core's own cache
    assert timings(addition(2**20), 0.02) == [0.02]
    assert cold_calls[3:] == [True]


def test_timings_are_reused_and_shared_by_plans_of_the_same_rows() -> None:
    one = addition(8)
    timer = OpTimer([5], seconds={one: 123.0})
    timer.total({one: 1.0})
    assert timer.seconds[one] == 123.0
    first = OpTimer.of((5, 6), torch.device("cpu"), 2)
    assert OpTimer.of((5, 6), torch.device("cpu"), 2) is first
    assert first.lengths == (5, 6)
    assert OpTimer.of((5, 6), torch.device("cpu"), 1) is not first


def test_rates_come_from_a_product_and_an_addition() -> None:
    timer = OpTimer([5], device=torch.device("meta"))
    seconds = iter([0.5, 0.25, 0.125, 2.0, 1.0, 4.0])
    timer._timed = lambda call, cold=True: next(seconds)  # type: ignore[method-assign]
    # medians of 0.25 s and 2 s: 2 · 2048³ flops; 2 · LARGE / 16 numbers of 4 bytes, read and written
    assert timer.measured_rates(torch.float32) == (2 * 2048**3 / 0.25, 2 * 4 * (LARGE // 16) / 2.0)
    assert timer.measured_rates(torch.float32) == timer.rates[torch.float32]


def test_attention_is_timed_on_the_batchs_documents_or_as_many_equal_ones() -> None:
    def layout(documents: int, tokens: int, keys: int) -> list[list[int]]:
        return timer._documents(attention("attention", 1, documents, tokens=tokens, keys=keys)).tolist()

    timer = OpTimer([10, 30])
    assert layout(2, 40, 40) == [[0, 10, 0, 10], [10, 30, 10, 30]]
    assert layout(2, 40, 50) == [[0, 10, 0, 15], [10, 30, 15, 35]]  # five of a prefix before each
    assert layout(3, 41, 41) == [[0, 13, 0, 13], [13, 13, 13, 13], [26, 15, 26, 15]]
    assert layout(2, 44, 44) == [[0, 22, 0, 22], [22, 22, 22, 22]]


@pytest.mark.skipif(native.library() is None, reason="needs the native kernels")
def test_kernels_are_called_by_name_with_their_shapes() -> None:
    timer = OpTimer([10, 30])
    norm = Operation(
        "rms_norm_bf16", (shape(4, 32), shape(32), shape(4, 32), shape(4, 1, dtype=torch.float32), 4, 32, 1e-5)
    )
    assert timer._timings(norm)
    kind = AttentionParameters(2, 3, 32, 0.2, 0, 1, 0.0, 0)
    documents, sums = shape(2, 4, dtype=torch.int64), shape(40, 6, dtype=torch.float32)
    for name, dtype in (("attention_bf16", torch.bfloat16), ("attention_fp32", torch.float32)):
        queries, keys = shape(40, 6, 32, dtype=dtype), shape(40, 2, 32, dtype=dtype)
        assert timer._timings(Operation(name, (kind, documents, 2, queries, keys, keys, queries, sums)))


# --- a step's time ---------------------------------------------------------------------------------------------------


def test_a_steps_time_is_the_largest_batchs_per_token_plus_the_optimizer() -> None:
    forward_backward, optimizer = {product(4096, 4096, 4096): 6.0}, {addition(10**6): 3.0}
    recipe = a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False})
    batch_plan = a_batch_plan(recipe, (100, 60, 90, 200, 50))
    plan = a_plan(a_step(forward_backward=forward_backward, optimizer=optimizer), GPU, batch_plan)
    layout = batch_plan.layout(True)
    assert [layout.batches.step(number) for number in range(3)] == [[[0, 1]], [[2], [3]], [[4]]]  # 160, 290, 50 tokens
    assert layout.steps == 6
    per_token = 6 * of(*forward_backward, GPU) / 200  # the largest batch has 200 tokens
    per_step = per_token * 2 * 500 / 6 + 3 * of(*optimizer, GPU)
    assert plan.largest_batch == [3]
    assert plan.time.seconds_per_step == pytest.approx(per_step, rel=1e-12)
    assert plan.time.tokens_per_second == pytest.approx(2 * 500 / 6 / per_step, rel=1e-12)
    assert plan.time.parts["training"] == pytest.approx(6 * per_step, rel=1e-12)
    assert plan.time.total_seconds == pytest.approx(sum(plan.time.parts.values()), rel=1e-12)


def test_evaluations_checkpoints_and_the_start_are_part_of_the_time() -> None:
    forward_backward, evaluation = {product(4096, 4096, 4096): 6.0}, {product(4096, 4096, 4096): 2.0}
    recipe = a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False, "evaluate_every": 4})
    held_out = a_batch_plan(recipe, (70, 30)).table
    batch_plan = replace(a_batch_plan(recipe, (100, 60, 90, 200, 50)), held_out=held_out)
    step = a_step(forward_backward=forward_backward, evaluation=evaluation, trained=10**8, parameters=10**9)
    parts = a_plan(step, GPU, batch_plan).time.parts
    pass_seconds = 6 * of(*forward_backward, GPU)
    assert parts["evaluation"] == pytest.approx(pass_seconds / 3 * 100 / 200 * 3, rel=1e-12)  # at steps 0, 4 and 6
    assert parts["checkpoints"] == pytest.approx(12e8 / 2e8 * 6, rel=1e-12)
    assert parts["start"] > pass_seconds
    without = a_plan(step, GPU, a_batch_plan(recipe, (100, 60, 90, 200, 50))).time.parts
    assert without == {**parts, "evaluation": 0.0}


def test_without_rows_the_total_time_is_unknown() -> None:
    plan = a_plan(batch_plan=replace(a_batch_plan(), known=False))
    assert plan.time.total_seconds is None
    fields = plan.to_dict()
    assert fields["time"] == {**vars(plan.time), "total_seconds": None}
    assert "time" not in plan.to_dict(timed=False)


# --- what a watch records --------------------------------------------------------------------------------------------


def parts_of(trace: Trace, first: int = 0) -> Mapping[str, int]:
    return trace.peak(first)


def test_memory_counts_from_its_operation_until_its_last_reference_is_gone() -> None:
    trace = Trace()
    watch = Watch(trace, "workspace")
    weight = torch.ones(4, 4)
    watch.hold([weight, weight.view(16)], "weights")
    with watch:
        one = weight + 1  # 64 bytes
        view = one.view(16)
        del one
        with watch.counting_as("loss"):
            other = view * 2  # 64 bytes
        assert watch.part == "workspace"
        del view
        third = other[:8].to(torch.float64)  # 64 bytes
        del other, third
    sizes = [(is_allocation, held.bytes, held.part) for is_allocation, held in trace.events]
    assert sizes == [
        (True, 64, "weights"), (True, 64, "workspace"), (True, 64, "loss"), (False, 64, "workspace"),
        (True, 64, "workspace"), (False, 64, "loss"), (False, 64, "workspace"),
    ]  # fmt: skip
    assert parts_of(trace) == {"weights": 64, "workspace": 64, "loss": 64}
    assert {each.name: count for each, count in trace.operations.items()} == {
        "aten.add.Tensor": 1,
        "aten.mul.Tensor": 1,
        "aten._to_copy.default": 1,
    }  # views do not count


def test_the_peak_is_searched_from_an_event_on() -> None:
    from tunesmith.planner.trace import Allocation, again

    first, second, third = Allocation(100, "a"), Allocation(40, "b"), Allocation(30, "a")
    trace = Trace([(True, first), (True, second), (False, first), (True, third), (False, second)])
    assert trace.peak() == {"a": 100, "b": 40}
    assert trace.peak(3) == {"b": 40, "a": 30}
    assert trace.peak(4) == {"b": 40, "a": 30}  # the memory held before the fourth event counts
    assert trace.peak(5) == {"a": 30}
    repeated = again([(True, third), (False, second), (False, third)])
    events = [(is_allocation, held.bytes, held.part) for is_allocation, held in repeated]
    assert events == [(True, 30, "a"), (False, 30, "a")]
    assert repeated[0][1] is repeated[1][1]
    assert repeated[0][1] is not third


def test_of_equal_peaks_the_first_one_counts() -> None:
    from tunesmith.planner.trace import Allocation

    first, second = Allocation(100, "a"), Allocation(100, "b")
    trace = Trace([(True, first), (False, first), (True, second), (False, second)])
    assert trace.peak() == {"a": 100}
    assert trace.peak(2) == {"b": 100}


def test_a_workspace_that_autograd_saves_counts_as_activations() -> None:
    trace = Trace()
    watch = Watch(trace, "workspace")
    x = torch.full((8,), 0.5, requires_grad=True)
    watch.hold([x], "adapters")
    with watch.on():
        # the product saves x, which is counted already, and the result of exp; the addition saves nothing
        loss = (x.exp() * x + 1).sum()
        loss.backward()
    saved = [held.bytes for is_allocation, held in trace.events if is_allocation and held.part == "activations"]
    assert saved == [32]
    assert {held.part for _, held in trace.events} == {"adapters", "activations", "workspace"}
