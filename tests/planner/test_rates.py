"""What an operation does and how long it takes: by rates on paper, by the clock's rules, and in a step's time."""

from collections.abc import Mapping

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
        # q kᵀ and p v: 2 products of 2 · tokens · keys · dim each, a document's keys being 50 / 2
        pytest.param(attention("attention", 0, 2), 2 * 2 * 40 * 25 * 6 * 32, id="attention"),
        pytest.param(attention("attention", 1, 2), 2 * 40 * 25 * 6 * 32, id="causal attention"),
        pytest.param(attention("attention_backward", 0, 2), 5 * 2 * 40 * 25 * 6 * 32, id="its backward pass"),
    ],
)
def test_arithmetic_of_products_and_attention_is_what_the_textbook_counts(operation: Operation, flops: int) -> None:
    assert operation.flops == flops


def test_bytes_moved_are_those_of_every_tensor_read_and_written_also_in_lists() -> None:
    assert product(64, 32, 16).moved == 2 * (64 * 32 + 32 * 16 + 64 * 16)
    joined = Operation("aten.cat.default", ((shape(3, 5), shape(4, 5)), 0), (), (shape(7, 5),))
    assert joined.moved == 2 * (15 + 20 + 35)
    assert attention("attention", 1, 2).moved == 8 * 2 * 4 + 2 * 32 * (40 * 6 + 2 * 50 * 2 + 40 * 6)


def test_an_operations_precision_is_that_of_the_first_numbers_it_reads() -> None:
    ids = shape(7, dtype=torch.int64)
    assert Operation("aten.embedding.default", (ids, shape(9, 4))).precision == torch.bfloat16
    mixed = Operation("aten.add.Tensor", (shape(4, dtype=torch.float64), shape(4)))
    assert mixed.precision == torch.float64
    assert Operation("aten.add.Tensor", (ids, ids), (), (shape(3),)).precision == torch.float32


# --- elsewhere: the roofline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        pytest.param(product(4096, 4096, 4096), 2 * 4096**3 / (0.65 * 1e12), id="bound by arithmetic in bf16"),
        pytest.param(
            product(4096, 4096, 4096, torch.float32), 2 * 4096**3 / (0.65 * 2e11), id="bound by arithmetic in fp32"
        ),
        pytest.param(addition(10**6), 3 * 2 * 10**6 / (0.8 * 4e9), id="bound by memory"),
        pytest.param(product(4096, 8, 4096), 2 * (2 * 4096 * 8 + 4096**2) / (0.8 * 4e9), id="a thin product"),
        pytest.param(addition(8), 5e-6, id="no shorter than its launch"),
    ],
)
def test_an_operation_elsewhere_takes_the_longer_of_arithmetic_and_memory(operation: Operation, seconds: float) -> None:
    assert of(operation, GPU) == pytest.approx(seconds, rel=1e-12)
    assert (REACHED_BY_PRODUCTS, REACHED_BY_MEMORY, LAUNCH) == (0.65, 0.8, 5e-6)


def test_a_processor_launches_nothing() -> None:
    tiny = addition(8, torch.float32)
    assert of(tiny, CPU_ELSEWHERE) == pytest.approx(3 * 4 * 8 / (0.8 * 4e9), rel=1e-12)


def test_operations_elsewhere_count_as_often_as_they_are_done() -> None:
    one, other = product(4096, 4096, 4096), addition(10**6)
    seconds = seconds_on(GPU, OpTimer([5]))
    expected = 3 * of(one, GPU) + 0.5 * of(other, GPU)
    for recorded in (True, False):
        assert seconds({one: 3.0, other: 0.5}, recorded) == pytest.approx(expected, rel=1e-12)


# --- here: the clock -------------------------------------------------------------------------------------------------


def test_here_seconds_are_the_clocks_with_what_lies_around_an_operation_in_a_pass() -> None:
    one, other = product(8, 8, 8), addition(8)
    clock = OpTimer([5], seconds={one: 0.25, other: 0.5})
    seconds = seconds_on(CPU_HERE, clock)
    assert seconds({one: 3.0, other: 2.0}, False) == 3 * 0.25 + 2 * 0.5
    assert seconds({one: 3.0, other: 2.0}, True) == pytest.approx(1.75 + 5 * 45e-6, rel=1e-12)
    assert clock.total({one: 2.0}) == pytest.approx(0.5 + 2 * OVERHEAD, rel=1e-12)


def test_what_is_too_large_to_try_goes_by_the_rates_of_its_like() -> None:
    clock = OpTimer([5], rates={torch.bfloat16: (4e15, 1e15)})
    large, heavy = addition(2**29), product(2**15, 2**14, 2**9)
    assert large.moved > LARGE
    assert heavy.flops > LARGE_FLOPS
    assert clock.total({large: 1.0, heavy: 2.0}, recorded=False) == pytest.approx(
        large.moved / 1e15 + 2 * heavy.flops / 4e15, rel=1e-12
    )
    thin = product(2**28, 1, 1)
    assert clock._by_rates(thin) == thin.moved / 1e15  # its memory takes longer than its arithmetic


def test_slow_products_are_not_tried_and_nothing_else_is_left_out() -> None:
    slow = OpTimer([5], rates={torch.bfloat16: (0.9e10, 1e9), torch.float32: (1e12, 1e9)})
    heavy = product(2**12, 2**11, 2**10)  # 1.7e10 flops: 1.9 s in bf16, 17 ms in fp32
    assert heavy.flops > SLOW_FLOPS
    assert slow._is_large(heavy)
    assert not slow._is_large(product(2**12, 2**11, 2**10, torch.float32))
    assert not slow._is_large(product(2**11, 2**10, 2**10))  # 4.3e9, below which none takes so long
    many = attention("attention", 0, 1, heads=64, tokens=3000, keys=3000)
    assert many.flops > SLOW_FLOPS
    assert not slow._is_large(many)  # no product of matrices


def test_a_processors_kernels_are_not_tried_on_a_gpu() -> None:
    there = OpTimer([5], device=torch.device("meta"))
    assert there._is_large(Operation("rms_norm_bf16", (shape(4, 8),)))
    assert not there._is_large(addition(8))
    assert not OpTimer([5])._is_large(Operation("rms_norm_bf16", (shape(4, 8),)))


def test_an_operation_is_carried_out_on_tensors_of_its_shapes_and_timed() -> None:
    ids = shape(7, dtype=torch.int64)
    done = [
        product(16, 8, 4),
        Operation("aten.cat.default", ((shape(3, 5), shape(4, 5)), 0), (), (shape(7, 5),)),
        Operation("aten.sum.dim_IntList", (shape(3, 5), (0,), True), (("dtype", torch.float32),)),
        Operation("aten.empty.memory_format", ((3, 5),), (("device", torch.device("cpu")),)),
        Operation("aten.embedding.default", (shape(9, 4), ids)),
    ]
    clock = OpTimer([5])
    for operation in done:
        assert clock._timings(operation), operation.name
    made = clock._torch(done[2])()
    assert (tuple(made.shape), made.dtype) == ((1, 5), torch.float32)
    assert made.tolist()[0] == pytest.approx([0.03] * 5, rel=0.01)  # small numbers, and no zeros
    assert clock._torch(done[1])().shape == (7, 5)
    assert clock._torch(done[4])().shape == (7, 4)


def test_what_cannot_be_done_by_itself_goes_by_rates() -> None:
    mismatched = Operation("aten.mm.default", (shape(3, 4), shape(5, 6)), (), (shape(3, 6),))
    clock = OpTimer([5], rates={torch.bfloat16: (1e6, 1e3)})
    assert clock._timings(mismatched) == []
    # 2 · 12 · 6 arithmetic operations at 1e6 a second, 2 · (12 + 30 + 18) bytes at 1e3
    assert clock.total({mismatched: 1.0}, recorded=False) == pytest.approx(0.12, rel=1e-12)


def test_an_operation_takes_the_median_of_its_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([3.0, 1.0, 2.0, 50.0, 7.0, 9.0])
    monkeypatch.setattr(OpTimer, "_timings", lambda self, _: [next(told) / 1e4])
    monkeypatch.setattr(op_timer_module, "ENOUGH", 0.0)
    clock = OpTimer([5])
    one, other = addition(8), addition(16)
    clock._learn([one, other], 0.0)  # three rounds over both: 3, 2, 7 and 1, 50, 9
    assert clock.seconds == {one: 3e-4, other: 9e-4}


def test_a_short_operation_is_timed_twice_and_cold_where_it_moves_much() -> None:
    asked: list[bool] = []

    def timings(operation: Operation, seconds: float) -> list[float]:
        clock = OpTimer([5])
        clock._timed = lambda act, cold=True: asked.append(cold) or seconds  # type: ignore[method-assign,func-returns-value]
        return clock._timings(operation)

    assert timings(addition(8), 0.0199) == [0.0199, 0.0199]
    assert timings(addition(8), 0.02) == [0.02]
    assert asked == [False] * 3  # what the operation before has left in a core's cache
    assert timings(addition(2**20), 0.02) == [0.02]
    assert asked[3:] == [True]


def test_what_is_known_is_not_timed_again_and_plans_of_the_same_rows_share_it() -> None:
    one = addition(8)
    clock = OpTimer([5], seconds={one: 123.0})
    clock.total({one: 1.0})
    assert clock.seconds[one] == 123.0
    first = OpTimer.of((5, 6), torch.device("cpu"), 2)
    assert OpTimer.of((5, 6), torch.device("cpu"), 2) is first
    assert first.lengths == (5, 6)
    assert OpTimer.of((5, 6), torch.device("cpu"), 1) is not first


def test_rates_are_those_of_a_product_and_an_addition() -> None:
    clock = OpTimer([5], device=torch.device("meta"))
    told = iter([0.5, 0.25, 0.125, 2.0, 1.0, 4.0])
    clock._timed = lambda act, cold=True: next(told)  # type: ignore[method-assign]
    # medians of 0.25 s and 2 s: 2 · 2048³ flops; 2 · LARGE / 16 numbers of 4 bytes, read and written
    assert clock._rates(torch.float32) == (2 * 2048**3 / 0.25, 2 * 4 * (LARGE // 16) / 2.0)
    assert clock._rates(torch.float32) == clock.rates[torch.float32]


def test_attention_is_timed_over_the_batchs_documents_or_as_many_alike() -> None:
    def laid(documents: int, tokens: int, keys: int) -> list[list[int]]:
        return clock._documents(attention("attention", 1, documents, tokens=tokens, keys=keys)).tolist()

    clock = OpTimer([10, 30])
    assert laid(2, 40, 40) == [[0, 10, 0, 10], [10, 30, 10, 30]]
    assert laid(2, 40, 50) == [[0, 10, 0, 15], [10, 30, 15, 35]]  # five of a prefix before each
    assert laid(3, 41, 41) == [[0, 13, 0, 13], [13, 13, 13, 13], [26, 15, 26, 15]]
    assert laid(2, 44, 44) == [[0, 22, 0, 22], [22, 22, 22, 22]]


@pytest.mark.skipif(native.library() is None, reason="there are no kernels here")
def test_kernels_are_called_by_their_name_with_their_shapes() -> None:
    clock = OpTimer([10, 30])
    norm = Operation(
        "rms_norm_bf16", (shape(4, 32), shape(32), shape(4, 32), shape(4, 1, dtype=torch.float32), 4, 32, 1e-5)
    )
    assert clock._timings(norm)
    queries, sums = shape(40, 6, 32), shape(40, 6, dtype=torch.float32)
    kind = AttentionParameters(2, 3, 32, 0.2, 0, 1, 0.0, 0)
    keys = shape(40, 2, 32)
    documents = shape(2, 4, dtype=torch.int64)
    attended = Operation("attention", (kind, documents, 2, queries, keys, keys, queries, sums))
    assert clock._timings(attended)


# --- a step's time ---------------------------------------------------------------------------------------------------


def test_a_steps_time_is_the_heaviest_batchs_by_the_token_and_the_update() -> None:
    learning, updating = {product(4096, 4096, 4096): 6.0}, {addition(10**6): 3.0}
    recipe = a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False})
    batch_plan = a_batch_plan(recipe, (100, 60, 90, 200, 50))
    plan = a_plan(a_step(learning=learning, updating=updating), GPU, batch_plan)
    layout = batch_plan.layout(True)
    assert [layout.batches.step(number) for number in range(3)] == [[[0, 1]], [[2], [3]], [[4]]]  # 160, 290, 50 tokens
    assert layout.steps == 6
    batch = 6 * of(*learning, GPU) / 200  # the heaviest has 200 tokens
    update = 3 * of(*updating, GPU)
    a_step_takes = batch * 2 * 500 / 6 + update
    assert plan.largest_batch == [3]
    assert plan.time.seconds_per_step == pytest.approx(a_step_takes, rel=1e-12)
    assert plan.time.tokens_per_second == pytest.approx(2 * 500 / 6 / a_step_takes, rel=1e-12)
    assert plan.time.total_seconds == pytest.approx(6 * a_step_takes, rel=1e-12)


def test_no_rows_tell_no_total_time() -> None:
    from dataclasses import replace

    plan = a_plan(batch_plan=replace(a_batch_plan(), known=False))
    assert plan.time.total_seconds is None
    told = plan.to_dict()
    assert told["time"] == vars(plan.time)
    assert "time" not in plan.to_dict(timed=False)


# --- what a watch writes down ----------------------------------------------------------------------------------------


def parts_of(trace: Trace, first: int = 0) -> Mapping[str, int]:
    return trace.peak(first)


def test_a_watch_counts_memory_from_the_operation_that_makes_it_until_its_last_reference_goes() -> None:
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
    sizes = [(comes, held.bytes, held.part) for comes, held in trace.events]
    assert sizes == [
        (True, 64, "weights"), (True, 64, "workspace"), (True, 64, "loss"), (False, 64, "workspace"),
        (True, 64, "workspace"), (False, 64, "loss"), (False, 64, "workspace"),
    ]  # fmt: skip
    assert parts_of(trace) == {"weights": 64, "workspace": 64, "loss": 64}
    assert {each.name: count for each, count in trace.operations.items()} == {
        "aten.add.Tensor": 1,
        "aten.mul.Tensor": 1,
        "aten._to_copy.default": 1,
    }  # no views


def test_the_peak_is_looked_for_from_an_event_on() -> None:
    from tunesmith.planner.trace import Held, again

    first, second, third = Held(100, "a"), Held(40, "b"), Held(30, "a")
    trace = Trace([(True, first), (True, second), (False, first), (True, third), (False, second)])
    assert trace.peak() == {"a": 100, "b": 40}
    assert trace.peak(3) == {"b": 40, "a": 30}
    assert trace.peak(4) == {"b": 40, "a": 30}  # what is held when the fourth comes counts
    assert trace.peak(5) == {"a": 30}
    twice = again([(True, third), (False, second), (False, third)])
    assert [(comes, each.bytes, each.part) for comes, each in twice] == [(True, 30, "a"), (False, 30, "a")]
    assert twice[0][1] is twice[1][1]
    assert twice[0][1] is not third


def test_what_autograd_keeps_of_a_workspace_is_an_activation() -> None:
    trace = Trace()
    watch = Watch(trace, "workspace")
    x = torch.full((8,), 0.5, requires_grad=True)
    watch.hold([x], "adapters")
    with watch.on():
        loss = (x.exp() * x + 1).sum()  # the product wants x, which is held already, and the result of exp; + nothing
        loss.backward()
    kept = [held.bytes for comes, held in trace.events if comes and held.part == "activations"]
    assert kept == [32]
    assert {held.part for _, held in trace.events} == {"adapters", "activations", "workspace"}
