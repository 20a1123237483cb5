"""A step simulated on fake tensors holds the same memory as the real step, byte for byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import DECODERS
from matrix import make_bases
from torch import Tensor
from transformers import GPT2Config

from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.trainable import trainable_model
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.prompts import plain_model
from tunesmith.planner.allocators import CachingAllocator, reserved, resident
from tunesmith.planner.extrapolation import step_of
from tunesmith.planner.shapes import HERE
from tunesmith.planner.step import Step, rows_like
from tunesmith.planner.trace import Allocation, Trace, Watch

LENGTHS = [240, 144, 384]
UNPREDICTABLE: set[str] = set()
"""Architectures whose forward pass needs real values."""


class RealWatch(Watch):
    """Traces real tensors, with the kernels running."""

    @contextmanager
    def on(self) -> Iterator[Watch]:
        def keep(tensor: Tensor) -> Tensor:
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, keep), self:
            yield self


def recipe_for(path: Path | str, **parts: Any) -> Recipe:
    fields = {"base": {"path": str(path), **parts.pop("base", {})}, "data": {"train": "rows.jsonl"}, **parts}
    return Recipe.model_validate(fields)


def predicted(recipe: Recipe, dtype: torch.dtype = torch.float32, **options: int) -> Step:
    def rows(*_: bool) -> tuple[TokenTable, list[int]]:
        return rows_like(recipe.objective, LENGTHS), list(range(len(LENGTHS)))

    return step_of(recipe, rows, dtype, resident, **options)


def real_peak(recipe: Recipe, dtype: torch.dtype) -> int:
    """Peak bytes of a real forward and backward pass, beyond the weights."""
    model, objective = trainable_model(recipe, dtype, torch.device("cpu"))
    MasterWeights(model.named_parameters(), recipe.train)
    batch = collate(rows_like(recipe.objective, LENGTHS), range(len(LENGTHS)))
    model.train()
    trace = Trace()
    watch = RealWatch(trace, "workspace")
    watch.hold([*model.parameters(), *model.buffers()], "weights")
    with watch.on():
        objective.loss(model, batch).backward()
    parts = trace.peak()
    return sum(held for part, held in parts.items() if part != "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "full", "ia3", "adapter", "prefix"])
def test_predicted_memory_beside_the_weights_matches_a_real_step(
    tiny_model: Path, method: str, dtype: torch.dtype
) -> None:
    recipe = recipe_for(tiny_model, method=method)
    parts = predicted(recipe, dtype).parts
    temporary = sum(parts.get(part, 0) for part in ("activations", "workspace", "loss"))
    assert temporary == pytest.approx(real_peak(recipe, dtype), rel=0.03)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("families")
    make_bases(directory, DECODERS)
    return directory


UNLIKE = ("llama", "gpt2", "gemma3_text", "granitemoehybrid", "deepseek_v3")
"""The architectures that differ most from each other; `make test-all` runs the rest."""


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family in UNLIKE else pytest.mark.long) for family in DECODERS]
)
def test_an_architecture_is_simulated_as_trained_or_refused_by_name(family: str, families: Path) -> None:
    recipe = recipe_for(families / family)
    if family in UNPREDICTABLE:
        with pytest.raises(UserError, match="cannot be predicted"):
            predicted(recipe)
        return
    step = predicted(recipe)
    model, _ = trainable_model(recipe, torch.float32, torch.device("cpu"))
    assert step.packed == packs(plain_model(model))
    assert step.trained == sum(each.numel() for each in model.parameters() if each.requires_grad)


@pytest.mark.long
def test_with_stored_attention_scores_the_largest_batch_has_long_documents(families: Path) -> None:
    lengths = [64] * 8 + [250] * 2  # 512 tokens, or 500 with four times the pairs
    recipe = recipe_for(families / "llama", train={"tokens_per_step": 512, "steps": 2})
    layout = BatchPlan.of(recipe, rows_like(recipe.objective, lengths)).layout(packed=True)
    for scores, tokens in ((False, [64] * 8), (True, [250] * 2)):
        assert [lengths[row] for row in layout.largest_of(scores)] == tokens
    assert predicted(recipe_for(HERE / "gpt2")).scores  # because of its attention dropout
    assert not predicted(recipe).scores


@pytest.mark.parametrize(
    ("dropout", "asked", "documents"),
    [
        pytest.param(0.0, [False], [128, 128, 128], id="no scores are stored"),
        pytest.param(0.1, [False, True], [200, 56], id="scores are stored"),
    ],
)
def test_a_step_is_that_of_the_largest_batch_for_its_attention(
    dropout: float, asked: list[bool], documents: list[int], tmp_path: Path
) -> None:
    GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=2,
        attn_pdrop=dropout, resid_pdrop=0.0, embd_pdrop=0.0,
    ).save_pretrained(tmp_path)  # fmt: skip
    recipe = recipe_for(tmp_path, method="full")
    table = rows_like(recipe.objective, [128, 128, 128, 200, 56])
    questions: list[bool] = []

    def rows(packed: bool, scores: bool) -> tuple[TokenTable, list[int]]:
        questions.append(scores)
        return table, [3, 4] if scores else [0, 1, 2]

    step = step_of(recipe, rows, torch.float32, resident)
    lookups = [each.arguments for each in step.forward_backward if each.name == "aten.embedding.default"]
    assert [ids.sizes for weight, ids in lookups if weight.sizes == (64, 32)] == [(1, sum(documents))]
    assert list(dict.fromkeys(questions)) == asked
    assert step.scores == (dropout > 0)


def test_muon_holds_one_moment_of_the_matrices_in_blocks(tiny_model: Path) -> None:
    recipe = recipe_for(tiny_model, method="full", train={"optimizer": "muon"})
    attention, feed_forward = 32 * 32 + 2 * 32 * 16 + 32 * 32, 3 * 32 * 64
    in_blocks = 2 * (attention + feed_forward)
    step = predicted(recipe, torch.bfloat16)
    expected = 4 * step.trained + 4 * in_blocks + 8 * (step.trained - in_blocks)  # fp32 masters and moments
    assert step.parts["optimizer"] == pytest.approx(expected, abs=256)


def test_parts_that_do_not_depend_on_the_batch_match_arithmetic(tiny_model: Path) -> None:
    full = predicted(recipe_for(tiny_model, method="full"), torch.bfloat16)
    weights = full.parameters
    assert full.parts["trained weights"] == 2 * weights
    assert full.parts["gradients"] == 4 * weights  # summed in fp32
    assert full.parts["optimizer"] == pytest.approx(12 * weights, abs=64)  # fp32 masters and two moments
    low_rank = predicted(recipe_for(tiny_model, method="lora"), torch.bfloat16)
    assert low_rank.parts["adapters"] == 2 * low_rank.trained
    assert low_rank.parts["weights"] >= 2 * weights
    eight_bit = recipe_for(tiny_model, method="full", train={"optimizer": "adamw_8bit"})
    assert predicted(eight_bit, torch.bfloat16).parts["optimizer"] == pytest.approx(
        4 * weights + 2.03 * weights, rel=0.01
    )


@pytest.mark.long
def test_distillation_also_holds_the_teacher_and_its_logits() -> None:
    alone, distilled = (
        predicted(recipe_for("embedded", objective=objective))
        for objective in ({"kind": "instruction"}, {"kind": "distillation", "teacher": "embedded"})
    )
    assert distilled.parts["reference models"] == alone.parts["weights"]
    assert distilled.parts["weights"] == alone.parts["weights"]
    assert distilled.parts["loss"] > alone.parts.get("loss", 0)
    assert sum(distilled.forward_backward.values()) > 1.2 * sum(
        alone.forward_backward.values()
    )  # one more forward pass


def test_4_bit_weights_take_half_a_byte_and_constants_an_eighth_of_a_bit() -> None:
    quantized = predicted(recipe_for("embedded", base={"weights": "nf4"}), torch.bfloat16)
    unquantized = predicted(recipe_for("embedded"), torch.bfloat16)
    numbers = (unquantized.parts["weights"] - quantized.parts["weights"]) / 1.5  # 2 bytes became half a byte
    constants = quantized.parts["quantization constants"]
    assert constants * 8 / numbers == pytest.approx(0.127, abs=0.01)  # Dettmers et al. 2023, section 3


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"kind": "lora", "rank": 4}, marks=pytest.mark.long),
        {"kind": "lora", "rank": 4, "last": 3},
        pytest.param({"kind": "layers", "last": 3}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_step_is_extrapolated_from_few_layers(method: dict[str, Any]) -> None:
    recipe = recipe_for("embedded", method=method)
    full = predicted(recipe)
    extrapolated = predicted(recipe, few_layers=2)
    assert extrapolated.parts == full.parts
    assert extrapolated.trained == full.trained
    assert extrapolated.parameters == full.parameters
    assert sum(extrapolated.forward_backward.values()) == sum(full.forward_backward.values())


def test_checkpointing_holds_less_and_computes_more(tiny_model: Path) -> None:
    without = predicted(recipe_for(tiny_model))
    checkpointed = predicted(recipe_for(tiny_model, train={"gradient_checkpointing": True}))
    assert checkpointed.parts["activations"] < without.parts["activations"]
    assert sum(checkpointed.forward_backward.values()) > sum(without.forward_backward.values())


def test_a_gap_is_too_small_for_its_old_size_while_slivers_are_filled() -> None:
    first, kept, second = (Allocation(2**20, part) for part in ("workspace", "activations", "workspace"))
    events = [(True, first), (True, kept), (False, first), (True, second)]
    for makes_graph, pieces in ((True, 3), (False, 2)):
        assert resident([(events, makes_graph)]) == pytest.approx(pieces * 2**20, rel=0.01)


def test_pytorchs_allocator_reserves_segments_as_in_its_source() -> None:
    small, large, huge = (Allocation(size, "workspace") for size in (1000, 2 * 2**20, 31 * 2**20 + 5))
    assert reserved([([(True, small)], False)]) == 2 * 2**20
    assert reserved([([(True, large)], False)]) == 20 * 2**20
    assert reserved([([(True, huge)], False)]) == 32 * 2**20
    allocator = CachingAllocator()
    for piece in (large, Allocation(19 * 2**20, "workspace")):
        allocator.allocate(piece)
    # 19 MiB do not fit behind 2; they are over 10 and get their own segment, rounded up
    assert allocator.peak_bytes == 40 * 2**20
