"""A step without numbers holds what the same step holds with them, byte for byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import DECODERS
from matrix import make_bases
from torch import Tensor

from tunesmith.config.recipe import Recipe
from tunesmith.data.pack import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.trainable import trainable_model
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.prompts import plain_model
from tunesmith.planner.allocators import CachingAllocator, reserved, resident
from tunesmith.planner.shapes import HERE
from tunesmith.planner.step import Step, rows_like, step_of
from tunesmith.planner.trace import Held, Trace, Watch

LENGTHS = [240, 144, 384]
UNFORESEEN: set[str] = set()
"""Families whose forward pass asks for numbers."""


class RealWatch(Watch):
    """Watches tensors that have numbers, with the kernels at work."""

    @contextmanager
    def on(self) -> Iterator[Watch]:
        def keep(tensor: Tensor) -> Tensor:
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, keep), self:
            yield self


def recipe_for(path: Path | str, **parts: Any) -> Recipe:
    given = {"base": {"path": str(path), **parts.pop("base", {})}, "data": {"train": "rows.jsonl"}, **parts}
    return Recipe.model_validate(given)


def predicted(recipe: Recipe, dtype: torch.dtype = torch.float32, **options: int) -> Step:
    def rows(*_: bool) -> tuple[TokenTable, list[int]]:
        return rows_like(recipe, LENGTHS), list(range(len(LENGTHS)))

    return step_of(recipe, rows, dtype, resident, **options)


def really(recipe: Recipe, dtype: torch.dtype) -> int:
    """Bytes that forward and backward hold at most beyond what is there before, with numbers."""
    model = trainable_model(recipe, dtype, torch.device("cpu"))
    MasterWeights(model.named_parameters(), recipe.train)
    batch = collate(rows_like(recipe, LENGTHS), range(len(LENGTHS)))
    model.train()
    trace = Trace()
    watch = RealWatch(trace, "workspace")
    watch.hold([*model.parameters(), *model.buffers()], "weights")
    with watch.on():
        recipe.objective.loss(model, batch).backward()
    parts = trace.peak()
    return sum(held for part, held in parts.items() if part != "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "full", "ia3", "adapter", "prefix"])
def test_what_is_held_beside_the_weights_is_what_a_real_step_holds(
    tiny_model: Path, method: str, dtype: torch.dtype
) -> None:
    recipe = recipe_for(tiny_model, method=method)
    parts = predicted(recipe, dtype).parts
    passing = sum(parts.get(part, 0) for part in ("activations", "workspace", "loss"))
    assert passing == pytest.approx(really(recipe, dtype), rel=0.03)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("families")
    make_bases(directory, DECODERS)
    return directory


UNLIKE = ("llama", "gpt2", "gemma3_text", "granitemoehybrid", "deepseek_v3")
"""Families that are most unlike each other; the rest have their turn in `make test-all`."""


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family in UNLIKE else pytest.mark.long) for family in DECODERS]
)
def test_a_family_is_carried_out_as_it_is_trained_or_refused_by_name(family: str, families: Path) -> None:
    recipe = recipe_for(families / family)
    if family in UNFORESEEN:
        with pytest.raises(UserError, match="cannot be foretold"):
            predicted(recipe)
        return
    found = predicted(recipe)
    model = trainable_model(recipe, torch.float32, torch.device("cpu"))
    assert found.packed == packs(plain_model(model))
    assert found.trained == sum(each.numel() for each in model.parameters() if each.requires_grad)


@pytest.mark.long
def test_where_attention_keeps_scores_the_heaviest_batch_is_of_long_documents(families: Path) -> None:
    lengths = [64] * 8 + [250] * 2  # 512 tokens, or 500 with four times the pairs
    recipe = recipe_for(families / "llama", train={"tokens_per_step": 512, "steps": 2})
    layout = BatchPlan.of(recipe, rows_like(recipe, lengths)).layout(packed=True)
    for scores, tokens in ((False, [64] * 8), (True, [250] * 2)):
        assert [lengths[row] for row in layout.largest_of(scores)] == tokens
    assert predicted(recipe_for(HERE / "gpt2")).scores  # which drops some of them
    assert not predicted(recipe).scores


def test_the_parts_that_do_not_depend_on_the_batch_are_what_arithmetic_says(tiny_model: Path) -> None:
    whole = predicted(recipe_for(tiny_model, method="full"), torch.bfloat16)
    weights = whole.parameters
    assert whole.parts["trained weights"] == 2 * weights
    assert whole.parts["gradients"] == 4 * weights  # summed in fp32
    assert whole.parts["optimizer"] == pytest.approx(12 * weights, abs=64)  # fp32 masters and two moments
    low_rank = predicted(recipe_for(tiny_model, method="lora"), torch.bfloat16)
    assert low_rank.parts["adapters"] == 2 * low_rank.trained
    assert low_rank.parts["weights"] >= 2 * weights
    in_eight = recipe_for(tiny_model, method="full", train={"optimizer": "adamw_8bit"})
    assert predicted(in_eight, torch.bfloat16).parts["optimizer"] == pytest.approx(
        4 * weights + 2.03 * weights, rel=0.01
    )


@pytest.mark.long
def test_a_teacher_is_held_beside_the_student_and_its_logits_beside_the_loss() -> None:
    alone, taught = (
        predicted(recipe_for("embedded", objective=objective))
        for objective in ({"kind": "instruction"}, {"kind": "distillation", "teacher": "embedded"})
    )
    assert taught.parts["reference models"] == alone.parts["weights"]
    assert taught.parts["weights"] == alone.parts["weights"]
    assert taught.parts["loss"] > alone.parts.get("loss", 0)
    assert sum(taught.learning.values()) > 1.2 * sum(alone.learning.values())  # a forward pass more


def test_four_bits_take_half_a_byte_and_their_constants_an_eighth_of_a_bit() -> None:
    quantized = predicted(recipe_for("embedded", base={"weights": "nf4"}), torch.bfloat16)
    whole = predicted(recipe_for("embedded"), torch.bfloat16)
    inside = (whole.parts["weights"] - quantized.parts["weights"]) / 1.5  # 2 bytes became a half
    constants = quantized.parts["quantization constants"]
    assert constants * 8 / inside == pytest.approx(0.127, abs=0.01)  # Dettmers et al. 2023, section 3


@pytest.mark.long
def test_few_layers_tell_what_all_of_them_take() -> None:
    recipe = recipe_for("embedded")
    whole = predicted(recipe)
    along = predicted(recipe, few_layers=2)
    assert along.parts == whole.parts
    assert along.trained == whole.trained
    assert along.parameters == whole.parameters
    assert sum(along.learning.values()) == sum(whole.learning.values())


def test_checkpointing_keeps_less_and_does_more(tiny_model: Path) -> None:
    once = predicted(recipe_for(tiny_model))
    twice = predicted(recipe_for(tiny_model, train={"gradient_checkpointing": True}))
    assert twice.parts["activations"] < once.parts["activations"]
    assert sum(twice.learning.values()) > sum(once.learning.values())


def test_a_gap_takes_no_piece_of_the_size_that_left_it_while_small_objects_fill_the_slivers() -> None:
    first, kept, second = (Held(2**20, part) for part in ("workspace", "activations", "workspace"))
    events = [(True, first), (True, kept), (False, first), (True, second)]
    for makes_graph, pieces in ((True, 3), (False, 2)):
        assert resident([(events, makes_graph)]) == pytest.approx(pieces * 2**20, rel=0.01)


def test_pytorchs_allocator_takes_segments_as_its_source_says() -> None:
    small, large, huge = Held(1000, "workspace"), Held(2 * 2**20, "workspace"), Held(31 * 2**20 + 5, "workspace")
    assert reserved([([(True, small)], False)]) == 2 * 2**20
    assert reserved([([(True, large)], False)]) == 20 * 2**20
    assert reserved([([(True, huge)], False)]) == 32 * 2**20
    allocator = CachingAllocator()
    for piece in (large, Held(19 * 2**20, "workspace")):
        allocator.take(piece)
    assert (
        allocator.most == 40 * 2**20
    )  # 19 MiB do not fit behind 2; they are over 10, and get a segment of their own, rounded up
