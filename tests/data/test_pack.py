"""The tensors of a batch, which rows are packed together, and which batches a step takes."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_model

from tunesmith.data.batch import WIDTH_STEP, collate
from tunesmith.data.example import Source
from tunesmith.data.pack import Batches, best_fit, best_fit_balanced, bucket_by_length, next_fit, pack_any_order, width
from tunesmith.data.tokens import TokenTable
from tunesmith.models.prompts import model_inputs

Bins = list[list[int]]


def table_of(*rows: tuple[Sequence[int], Sequence[int]] | tuple[Sequence[int], Sequence[int], Sequence[float]]) -> Any:
    """A table of (ids, loss positions) or (ids, loss positions, targets)."""
    table_rows: list[Any] = []
    for number, (ids, positions, *targets) in enumerate(rows, 1):
        marks = np.zeros(len(ids), np.bool_)
        marks[list(positions)] = True
        table_rows.append((np.array(ids, np.int32), marks, Source("rows", number), *map(tuple, targets)))
    return TokenTable.build(table_rows)


def table_with(lengths: Sequence[int]) -> TokenTable:
    """Rows of these lengths, with loss on all tokens."""
    return table_of(*((range(1, length + 1), range(length)) for length in lengths))


# The tensors of a batch

ROWS = table_of(
    ([5, 9, 13, 21, 30], [2, 3]),  # the tokens after 21 have no loss: 21 is predicted, and nothing after 13 is needed
    ([7, 8, 33], [0, 1, 2]),  # no token before 7 could predict it
    ([40, 41], [0]),  # so this row has no loss
    ([60, 61, 62, 63], [1, 3]),
)


def test_documents_are_concatenated_without_the_tokens_after_their_last_loss() -> None:
    batch = collate(ROWS, [1, 3, 0, 2])
    assert batch.input_ids.tolist() == [[7, 8, 60, 61, 62, 5, 9, 13, 40] + [0] * 119]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 0, *range(119)]]
    assert batch.lengths == [2, 3, 3, 1, 119]
    assert batch.loss_positions.tolist() == [0, 1, 2, 4, 6, 7]
    assert batch.labels.tolist() == [8, 33, 61, 63, 13, 21]
    assert batch.rows == (1, 3, 0, 2)
    assert (batch.tokens, batch.loss_tokens_per_row, batch.documents_per_row) == (14, [2, 2, 2, 0], [1, 1, 1, 1])
    assert (batch.loss_tokens, batch.documents) == (6, 4)
    assert batch.features is None
    tensors = (batch.input_ids, batch.position_ids, batch.loss_positions, batch.labels)
    assert all(tensor.dtype == torch.int64 for tensor in tensors)


@pytest.mark.parametrize(
    ("count", "padded_width"),
    [(WIDTH_STEP, WIDTH_STEP), (WIDTH_STEP + 1, WIDTH_STEP), (WIDTH_STEP + 2, 2 * WIDTH_STEP)],
)
def test_a_width_is_padded_to_the_next_multiple(count: int, padded_width: int) -> None:
    batch = collate(table_with([count]), [0])  # the last token is predicted, not read
    assert batch.input_ids.shape == batch.position_ids.shape == (1, padded_width)
    assert batch.lengths == [count - 1] + [padded_width - count + 1] * (padded_width > count - 1)
    assert batch.position_ids.tolist() == [[*range(count - 1), *range(padded_width - count + 1)]]


@pytest.mark.parametrize(
    ("rows", "lengths", "positions", "labels", "units"),
    [
        pytest.param(
            [([5, 6, 7], [2], [1.0]), ([8, 9], [1], [0.0])], [3, 2], [2, 4], [[1.0], [0.0]], [1, 1], id="classes"
        ),
        pytest.param([([5, 6, 7], [2], [0.25]), ([8], [0], [-3.5])], [3, 1], [2, 3], [[0.25], [-3.5]], [1, 1],
            id="values"),
        pytest.param(
            [([5, 6], [1], [1, 0, 1]), ([8, 9], [1], [0, 0, 1])], [2, 2], [1, 3], [[1, 0, 1], [0, 0, 1]], [1, 1],
            id="several classes",
        ),
        pytest.param(
            [([5, 6, 7, 8, 9], [1, 3], [4, 2]), ([3, 2, 1], [0], [7])], [5, 3], [1, 3, 5], [[4], [2], [7]], [2, 1],
            id="tags",
        ),
    ],
)  # fmt: skip
def test_targets_are_at_the_loss_positions_and_all_tokens_are_read(
    rows: list[Any], lengths: list[int], positions: list[int], labels: list[Any], units: list[int]
) -> None:
    batch = collate(table_of(*rows), range(2))
    read = [token for ids, *_ in rows for token in ids]
    assert batch.input_ids[0].tolist() == read + [0] * (WIDTH_STEP - len(read))
    assert batch.lengths == [*lengths, WIDTH_STEP - sum(lengths)]
    assert batch.loss_positions.tolist() == positions
    assert batch.labels.tolist() == labels
    assert batch.labels.dtype == torch.float32
    assert (batch.tokens, batch.loss_tokens_per_row, batch.documents_per_row) == (len(read), units, [1, 1])


def test_compared_texts_are_separate_documents_and_one_loss_unit_per_row() -> None:
    rows = [([5, 6, 7, 8, 9], [1, 4], []), ([3, 2, 1, 4, 4, 4], [0, 2, 5], [])]
    batch = collate(table_of(*rows), range(2))
    assert batch.input_ids[0, :11].tolist() == [5, 6, 7, 8, 9, 3, 2, 1, 4, 4, 4]
    assert batch.position_ids[0, :11].tolist() == [0, 1, 0, 1, 2, 0, 0, 1, 0, 1, 2]
    assert batch.lengths == [2, 3, 1, 2, 3, 117]
    assert batch.loss_positions.tolist() == [1, 4, 5, 7, 10]
    assert batch.labels.shape == (5, 0)
    assert (batch.loss_tokens_per_row, batch.documents_per_row) == ([1, 1], [2, 3])
    assert (batch.loss_tokens, batch.documents) == (2, 5)


def test_rows_with_precomputed_features_have_no_token_tensors() -> None:
    table = table_of(([5, 6, 7], [2], [1.0]), ([8], [0], [3.0]), ([1, 2], [1], [2.0]))
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    with_features = TokenTable(
        *(getattr(table, name) for name in ("ids", "loss_mask", "offsets", "files", "file", "row", "targets")),
        table.target_offsets, features,
    )  # fmt: skip
    batch = collate(with_features, [2, 0])
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 0)
    assert batch.input_ids.dtype == batch.loss_positions.dtype == torch.int64
    assert (batch.lengths, batch.loss_positions.tolist()) == ([], [])
    assert batch.features is not None
    assert batch.features.tolist() == [[8.0, 9.0, 10.0, 11.0], [0.0, 1.0, 2.0, 3.0]]
    assert batch.labels.tolist() == [[2.0], [1.0]]
    assert (batch.rows, batch.tokens, batch.loss_tokens_per_row, batch.documents_per_row) == ((2, 0), 5, [1, 1], [1, 1])


def test_a_family_without_packing_gets_padded_rows_with_an_attention_mask() -> None:
    model = small_model("bloom", layers=1)
    inputs = model_inputs(model, collate(ROWS, [1, 3, 0]))
    assert set(inputs.arguments) == {"input_ids", "attention_mask"}
    padding = [model.config.pad_token_id or 0]
    assert inputs.arguments["input_ids"].tolist() == [
        [7, 8] + padding * 14, [60, 61, 62] + padding * 13, [5, 9, 13] + padding * 13,
    ]  # fmt: skip
    assert inputs.arguments["attention_mask"].tolist() == [[1] * n + [0] * (16 - n) for n in (2, 3, 3)]
    assert inputs.positions.tolist() == [0, 1, 16, 17, 18, 32, 33, 34]
    assert inputs.starts.tolist() == [0, 16, 32]


# Which rows are packed together

LENGTHS = st.lists(st.integers(1, 60), max_size=24)
CAPACITY = st.integers(1, 90)


def loads(lengths: Sequence[int], bins: Bins, padded: bool = False) -> list[int]:
    return [width([lengths[item] for item in items], padded) for items in bins]


PACKERS: dict[str, tuple[Callable[[Sequence[int], int], Bins], bool]] = {
    "best_fit": (best_fit, False),
    "best_fit, balanced": (best_fit_balanced, False),
    "next_fit": (next_fit, False),
    "next_fit, padded": (lambda lengths, capacity: next_fit(lengths, capacity, True), True),
    "by length": (bucket_by_length, True),
    "any order": (lambda lengths, capacity: pack_any_order(lengths, capacity, False), False),
    "any order, padded": (lambda lengths, capacity: pack_any_order(lengths, capacity, True), True),
}


@pytest.mark.parametrize("name", PACKERS)
def test_every_item_is_in_one_bin_and_only_a_single_item_may_exceed_it(name: str) -> None:
    pack, padded = PACKERS[name]

    @settings(max_examples=30)
    @given(LENGTHS.filter(len), CAPACITY)
    def all_items_fit(lengths: list[int], capacity: int) -> None:
        bins = pack(lengths, capacity)
        assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
        assert all(items for items in bins)
        for items, load in zip(bins, loads(lengths, bins, padded), strict=True):
            assert load <= capacity or len(items) == 1

    all_items_fit()


@settings(max_examples=60)
@given(LENGTHS, CAPACITY)
def test_best_fit_puts_the_longest_item_into_the_fullest_bin_with_room(lengths: list[int], capacity: int) -> None:
    bins: Bins = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        room = [capacity - sum(lengths[other] for other in items) for items in bins]
        roomy = [index for index in range(len(bins)) if room[index] >= lengths[item]]
        if roomy:
            bins[min(roomy, key=lambda index: (room[index], index))].append(item)
        else:
            bins.append([item])
    assert best_fit(lengths, capacity) == bins


@settings(max_examples=60)
@given(LENGTHS, CAPACITY, st.booleans())
def test_next_fit_keeps_the_order_and_opens_a_bin_only_when_needed(
    lengths: list[int], capacity: int, padded: bool
) -> None:
    bins = next_fit(lengths, capacity, padded)
    assert [item for items in bins for item in items] == list(range(len(lengths)))
    for items, (first, *_) in pairwise(bins):
        assert width([lengths[item] for item in (*items, first)], padded) > capacity


@settings(max_examples=60)
@given(LENGTHS, CAPACITY)
def test_bucket_by_length_goes_from_longest_to_shortest_and_fills_bins(lengths: list[int], capacity: int) -> None:
    bins = bucket_by_length(lengths, capacity)
    order = [item for items in bins for item in items]
    assert order == sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    for items, (first, *_) in pairwise(bins):
        assert lengths[items[0]] * (len(items) + 1) > capacity, f"{first} would have fitted"


def test_best_fit_balanced_needs_as_few_bins_and_fills_them_evenly() -> None:
    assert best_fit_balanced([10] * 10, 64) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert loads([10] * 10, best_fit([10] * 10, 64)) == [60, 40]
    generator = np.random.default_rng(3)
    for count in (7, 40, 200):
        lengths = generator.integers(5, 300, count).tolist()
        fewest = len(best_fit(lengths, 700))
        even = next(room for room in range(1, 701) if len(best_fit(lengths, room)) == fewest)
        bins = best_fit_balanced(lengths, 700)
        assert len(bins) == fewest
        assert max(loads(lengths, bins)) <= 1.01 * even + 1
    assert best_fit_balanced([64, 64], 64) == best_fit([64, 64], 64), "full bins cannot be filled more evenly"


def test_pack_any_order_packs_or_pads() -> None:
    lengths = [5, 60, 33, 31, 7, 64, 2, 62]
    assert pack_any_order(lengths, 64, padded=False) == best_fit(lengths, 64)
    assert pack_any_order(lengths, 64, padded=True) == bucket_by_length(lengths, 64)
    assert best_fit(lengths, 64) != bucket_by_length(lengths, 64)
    assert (width(lengths, padded=False), width(lengths, padded=True)) == (264, 512)


# Which batches a step takes


def batches_of(lengths: Sequence[int], tokens_per_step: int, **options: Any) -> Batches:
    plain = {"tokens_per_batch": 64, "pack": False, "shuffle": False, "seed": 0}
    return Batches(table_with(lengths), tokens_per_step=tokens_per_step, **{**plain, **options})


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        pytest.param([40, 40, 30, 60, 50, 10], [[0, 1, 2], [3, 4], [5]], id="closest to the tokens per step"),
        pytest.param([80, 40, 80], [[0, 1], [2]], id="a tie adds the batch"),
        pytest.param([80, 42, 80], [[0], [1, 2]], id="too far over starts a new step"),
        pytest.param([300, 5, 300], [[0], [1], [2]], id="a batch over the budget is alone"),
        pytest.param([100, 100], [[0], [1]], id="full steps"),
        pytest.param([1, 100], [[0, 1]], id="never an empty step"),
    ],
)
def test_a_step_ends_where_its_tokens_are_closest_to_the_target(lengths: list[int], steps: list[list[int]]) -> None:
    assert batches_of(lengths, 100).epoch(0) == [[[row] for row in step] for step in steps]


def test_packed_steps_have_batches_in_file_order() -> None:
    lengths = [30, 30, 20, 40, 10, 64, 5]
    packed = batches_of(lengths, 100, pack=True)
    assert packed.epoch(0) == [[[0, 1], [2, 3]], [[4], [5], [6]]]
    assert packed.epoch(1) == packed.epoch(0), "the file's order, each time"
    padded = batches_of(lengths, 100, pack=True, padded=True)
    assert padded.epoch(0) == [[[0, 1], [2], [3]], [[4], [5], [6]]], "20 and 40 would be padded to 80"
    assert padded.padded
    assert not packed.padded


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 0), (7, 1), (1, 7)])
def test_the_order_of_an_epoch_depends_only_on_the_seed_and_the_epoch(seed: int, epoch: int, padded: bool) -> None:
    lengths = np.random.default_rng(5).integers(5, 50, 40).tolist()
    generator = np.random.default_rng([seed, epoch])
    order = np.arange(40)
    generator.shuffle(order)
    alone = batches_of(lengths, 1, shuffle=True, seed=seed)
    assert alone.epoch(epoch) == [[[row]] for row in order.tolist()]
    bins = (bucket_by_length if padded else best_fit_balanced)([lengths[row] for row in order], 64)
    generator.shuffle(bins)
    packed = batches_of(lengths, 1, shuffle=True, seed=seed, pack=True, padded=padded)
    assert packed.epoch(epoch) == [[[int(order[item]) for item in items]] for items in bins]


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    tokens=st.integers(1, 300),
    pack=st.booleans(),
    shuffle=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 3),
)
def test_each_epoch_takes_every_row_once_in_steps_close_to_the_target(
    lengths: list[int], tokens: int, pack: bool, shuffle: bool, padded: bool, seed: int
) -> None:
    batches = batches_of(lengths, tokens, pack=pack, shuffle=shuffle, padded=padded, seed=seed)
    later = batches_of(lengths, tokens, pack=pack, shuffle=shuffle, padded=padded, seed=seed)
    flat = []
    for number in range(3):
        epoch = batches.epoch(number)
        assert sorted(row for step in epoch for rows in step for row in rows) == list(range(len(lengths)))
        sizes = [[sum(lengths[row] for row in rows) for rows in step] for step in epoch]
        for step, (first, *_) in pairwise(sizes):
            assert sum(step) + first / 2 > tokens, "the next batch would have brought it closer"
        for step in sizes:
            assert len(step) == 1 or sum(step[:-1]) + step[-1] / 2 <= tokens, "its last batch brought it closer"
        flat += epoch
    for index in reversed(range(len(flat))):
        assert later.step(index) == flat[index], "any step, without those before it"
    tokens_per_step = [sum(lengths[row] for rows in step for row in rows) for step in flat]
    first, last = len(flat) // 3, 2 * len(flat) // 3 + 1
    assert batches.tokens_in(first, last) == sum(tokens_per_step[first:last])
    assert batches.steps_in(3) == len(flat)


def test_steps_of_full_and_partial_epochs_are_counted_and_at_least_one() -> None:
    batches = batches_of([10] * 10, 20)  # five steps an epoch
    steps = {epochs: batches.steps_in(epochs) for epochs in (0.05, 0.3, 0.5, 0.9, 1, 1.25, 2.0, 2.7)}
    assert steps == {0.05: 1, 0.3: 2, 0.5: 2, 0.9: 4, 1: 5, 1.25: 6, 2.0: 10, 2.7: 14}


def test_a_partial_epoch_is_counted_in_its_own_steps() -> None:
    lengths = np.random.default_rng(1).integers(5, 60, 30).tolist()
    batches = batches_of(lengths, 90, pack=True, shuffle=True, seed=2)
    steps = [len(batches.epoch(number)) for number in range(12)]
    full = next(number for number in range(1, 12) if steps[number] != steps[number - 1])
    assert batches.steps_in(full + 0.99) == sum(steps[: full + 1])


def test_tokens_in_counts_the_real_tokens_of_the_given_steps() -> None:
    batches = batches_of([40, 40, 30, 60, 50, 10], 100)  # steps of 110, 110 and 10 tokens
    assert batches.tokens_in(0, 1) == 110
    assert batches.tokens_in(1, 5) == 110 + 10 + 110 + 110
    assert batches.tokens_in(2, 2) == 0
