"""A run's step without numbers: the model imagined, its heaviest batch, the update; memory and operations by phase."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.pack import Batch, collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import enable_activation_checkpointing
from tunesmith.engine.optimizers import ON_CUDA_ALONE
from tunesmith.engine.trainable import base_parameters, is_hidden, made_trainable
from tunesmith.errors import UserError
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import packs
from tunesmith.models.conv1d import TurnedLinear
from tunesmith.models.fake_tensors import fake_tensors
from tunesmith.models.heads import body_is_frozen
from tunesmith.models.load import config_of, fake_model
from tunesmith.models.prompts import plain_model
from tunesmith.models.quantize import QuantizedLinear
from tunesmith.planner.allocators import Passes
from tunesmith.planner.trace import PRODUCTS, Operation, Trace, Watch, again

FEW_LAYERS = 12
"""Models of more blocks are carried out with few of them, twice, and the rest is read off the line through both."""

GAPS_GROWTH = 0.65
"""The allocator's gaps do not lie on that line: they grow with this power of the number of blocks, as fits SmolLM2
135M, Gemma 3 1B and Qwen 2.5 3B best (few blocks beside all, blocks computed once and twice)."""

EIGHT_BITS = 2 * (1 + 4 / 256)
"""Bytes a number that both of AdamW's moments take in 8 bits: a code each, and an fp32 scale for 256 of them (Dettmers
et al. 2022, section 2.1)."""


@dataclass(frozen=True)
class Step:
    """What one batch and one update take.

    Attributes:
        parts: bytes by part when most are held.
        slack: what the allocator has of the system beyond them.
        evaluating: bytes by part when most are held without gradients.
        learning: how often each operation is done, forward and backward, for the batch.
        updating: in the optimizer's step.
        judging: in the loss of the batch without gradients.
        parameters: of the base.
        trained: numbers that move.
        blocks: of the model.
        packed: whether rows are packed.
        largest: numbers of the largest matrix in the blocks.
        turned: whether matrices lie the other way round in the base's files (`models.conv1d`).
    """

    parts: dict[str, int]
    slack: int
    evaluating: dict[str, int]
    learning: dict[Operation, float]
    updating: dict[Operation, float]
    judging: dict[Operation, float]
    parameters: int
    trained: int
    blocks: int
    packed: bool
    largest: int
    turned: bool

    @property
    def scores(self) -> bool:
        """Whether attention keeps a score for each pair of tokens."""
        return any("softmax" in each.name and len(each.results[0].sizes) == 4 for each in self.learning)

    @property
    def products(self) -> int:
        """How many different products of matrices in 16 bits it does, for each of which a CPU's library makes code."""
        done = {**self.learning, **self.judging}
        return sum(each.name.startswith(PRODUCTS) and each.precision.itemsize == 2 for each in done)


Holds = Callable[[Passes], int]

Rows = Callable[[bool, bool], tuple[TokenTable, list[int]]]
"""Gives a table and the rows of it that are the batch, when told whether rows are packed, and whether attention keeps
scores."""


def step_of(
    recipe: Recipe,
    rows: Rows,
    dtype: torch.dtype,
    holds: Holds,
    checkpointed: int | None = None,
    few_layers: int = FEW_LAYERS,
) -> Step:
    """Carry out one step of the recipe without numbers.

    Args:
        recipe: with its objective settled.
        rows: of the heaviest batch.
        dtype: of what is not quantized.
        holds: what the device's allocator has of the system for them.
        recomputed: how many blocks compute their activations twice; default: as the recipe says.
        few_layers: blocks of which all are carried out.

    Raises:
        UserError: base, method and objective do not go together, or the family cannot be carried out so.
    """
    config = config_of(recipe.base)
    counts = _few_layers(config, few_layers)
    if counts is None:
        return _with_its_largest_batch(recipe, rows, dtype, holds, None, checkpointed)
    fewer, more = counts
    layers = config.get_text_config().num_hidden_layers
    some = checkpointed is not None and 0 < checkpointed < layers
    twice = [None if checkpointed is None else 0 if some else min(checkpointed, count) for count in counts]
    low = _with_its_largest_batch(recipe, rows, dtype, holds, fewer, twice[0])
    high = _carried_out(recipe, rows, dtype, holds, more, twice[1], scores=low.scores)
    whole = _along(low, low, high, (layers - fewer) / (more - fewer), layers)
    if checkpointed is None or not some:
        return whole
    period = more - fewer
    first_twice = _carried_out(recipe, rows, dtype, holds, more, period, scores=low.scores)
    return _along(whole, high, first_twice, checkpointed / period, layers)


def _with_its_largest_batch(
    recipe: Recipe, rows: Rows, dtype: torch.dtype, holds: Holds, layers: int | None, checkpointed: int | None
) -> Step:
    """Which batch takes most memory depends on attention, of which the first one tells."""
    step = _carried_out(recipe, rows, dtype, holds, layers, checkpointed, scores=False)
    if not step.scores or rows(step.packed, True)[1] == rows(step.packed, False)[1]:
        return step
    return _carried_out(recipe, rows, dtype, holds, layers, checkpointed, scores=True)


def _few_layers(config: PretrainedConfig, few: int) -> tuple[int, int] | None:
    """Two numbers of blocks, whole repetitions of the family's pattern; None where all are to be carried out."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    if config.is_encoder_decoder or layers <= few:
        return None
    lists = [each for each in vars(text).values() if isinstance(each, list) and len(each) == layers]
    period = next(
        size
        for size in range(1, layers + 1)
        if all(each[place] == each[place % size] for each in lists for place in range(layers))
    )
    fewer = -(-2 // period) * period
    return (fewer, fewer + period) if fewer + period < layers else None


def _carried_out(
    recipe: Recipe,
    rows: Rows,
    dtype: torch.dtype,
    holds: Holds,
    layers: int | None,
    checkpointed: int | None,
    scores: bool,
) -> Step:
    gc.freeze()  # garbage is looked for among what is made here alone
    try:
        with fake_tensors():
            model = made_trainable(recipe, fake_model(recipe.base, dtype, recipe.objective.ending, layers))
            if checkpointed is not None:
                enable_activation_checkpointing(model, checkpointed)
            return _Rehearsal(recipe, model, _batch(model, rows, scores), holds).step()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"base: {recipe.base.path}: a step of it cannot be foretold, since its forward pass asks for numbers "
            f"({str(error).splitlines()[0]})."
        ) from error
    finally:
        gc.collect()
        gc.unfreeze()


class _Rehearsal:
    """A model without numbers, its optimizer and its batch, watched."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel, batch: Batch, holds: Holds) -> None:
        self.recipe = recipe
        self.model = model
        self.holds = holds
        self.batch = batch
        self.trace = Trace()
        self.watch = Watch(self.trace, "workspace")
        plain = recipe.train.model_copy(update={"optimizer": "adamw"})
        self.in_eight_bits = recipe.train.optimizer in ON_CUDA_ALONE
        hidden = [is_hidden(model)] if recipe.train.optimizer == "muon" else []
        self.masters = MasterWeights(
            model.named_parameters(), plain if self.in_eight_bits else recipe.train, lambda _: 1.0, *hidden
        )
        moving = [each for each in model.parameters() if each.requires_grad]
        self._hold(model, "weights")
        for other in recipe.objective.reference_models:
            self._hold(other, "reference models")
        self.watch.hold(moving, "trained weights" if recipe.method.kind == "full" else "adapters")
        self.watch.hold([self.masters.flat], "optimizer")
        self.watch.hold([self.masters.grad], "gradients")
        if self.masters.average is not None:
            self.watch.hold([self.masters.average], "optimizer")

    def _hold(self, model: PreTrainedModel, part: str) -> None:
        self.watch.hold([*model.parameters(), *model.buffers()], part)
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                held = layer.quantized
                constants = [held.scales, held.scale_offset, held.scale_scales]
                self.watch.hold([held.codes], part)
                self.watch.hold([each for each in constants if each is not None], "quantization constants")

    def step(self) -> Step:
        """Evaluation, the batch, the update; and, for the allocator, the batch once more, beside the new moments."""
        judging, held = self._phase(self._evaluate)
        first = len(self.trace.events)
        learning, _ = self._phase(self._learn)
        last = len(self.trace.events)
        updating, _ = self._phase(self._update)
        events = self.trace.events
        forward, back = events[first : self.turn], events[self.turn : last]
        once_more = again(forward + back)
        passes = [(events[:first], False), (forward, True), (back + events[last:], False)]
        passes += [(once_more[: len(forward)], True), (once_more[len(forward) :], False)]
        second = len(events)
        events += once_more
        parts = self.trace.peak(second)
        plain = plain_model(self.model)
        return Step(
            parts,
            max(0, self.holds(passes) - sum(parts.values())),
            held,
            learning,
            updating,
            judging,
            base_parameters(self.model),
            len(self.masters.flat),
            len(blocks(plain)),
            packs(plain),
            max(_numbers(layer) for block in blocks(plain) for layer in block.modules()),
            any(isinstance(layer, TurnedLinear) for layer in self.model.modules()),
        )

    def _phase(self, act: Callable[[], None]) -> tuple[dict[Operation, float], dict[str, int]]:
        """Its operations, and the bytes by part when it holds most."""
        before = len(self.trace.events)
        self.trace.operations = Counter()
        act()
        return dict(self.trace.operations), self.trace.peak(before)

    def _learn(self) -> None:
        self.model.train()
        with self.watch.on(), _mark_loss_memory(self.model, self.watch):
            loss = self.recipe.objective.loss(self.model, self.batch)
            self.turn = len(self.trace.events)
            loss.backward()

    def _evaluate(self) -> None:
        self.model.eval()
        with self.watch.on(), torch.no_grad(), _mark_loss_memory(self.model, self.watch):
            self.recipe.objective.losses(self.model, self.batch)

    def _update(self) -> None:
        with self.watch.on(), self.watch.counting_as("optimizer"), torch.no_grad():
            if self.in_eight_bits:
                self.moments = torch.empty(int(EIGHT_BITS * len(self.masters.flat)), dtype=torch.uint8)
                return
            self.masters.grad.mul_(1.0)
            for rule in self.masters.rules:
                rule.step()
            for view, parameter in zip(self.masters.views, self.masters.parameters, strict=True):
                if parameter.dtype != view.dtype:
                    parameter.copy_(view)
            self.masters.grad.zero_()


def _batch(model: PreTrainedModel, rows: Rows, scores: bool) -> Batch:
    table, chosen = rows(packs(plain_model(model)), scores)
    if body_is_frozen(model):
        table = replace(table, features=np.zeros((len(table), model.config.get_text_config().hidden_size), np.float32))
    return collate(table, chosen)


def rows_like(recipe: Recipe, lengths: list[int]) -> TokenTable:
    """Rows of these lengths, all of which is learnt, for what the objective teaches.

    Raises:
        UserError: only real rows can tell.
    """
    ending = recipe.objective.ending
    if ending.kind == "vocabulary":
        return TokenTable.build(
            (np.zeros(length, np.int32), np.ones(length, np.bool_), Source("", 1)) for length in lengths
        )
    if ending.kind != "classes":
        raise UserError(f"objective: {recipe.objective.kind}: its plan needs rows. Give data.train, or --data FILE.")
    told = (0.0,) * (1 if ending.problem != "multi_label_classification" else len(ending.labels))
    return TokenTable.build(
        (np.zeros(length, np.int32), np.arange(length) == length - 1, Source("", 1), told) for length in lengths
    )


def _numbers(layer: nn.Module) -> int:
    """Of its own largest matrix."""
    if isinstance(layer, QuantizedLinear):
        return layer.in_features * layer.out_features
    return max((each.numel() for each in layer.parameters(recurse=False)), default=0)


@contextmanager
def _mark_loss_memory(model: PreTrainedModel, watch: Watch) -> Iterator[None]:
    """Within the block what is made behind the model's body, and before the backward pass is back there, is the
    loss's."""
    plain = plain_model(model)
    body: nn.Module = plain.get_decoder() if plain.config.is_encoder_decoder else plain.base_model

    def back(_: Tensor) -> None:
        watch.part = "workspace"

    def behind(_: nn.Module, __: object, out: object) -> None:
        watch.part = "loss"
        hidden = getattr(out, "last_hidden_state", None)
        if hidden is not None and hidden.requires_grad:
            hidden.register_hook(back)

    hook = body.register_forward_hook(behind)
    try:
        yield
    finally:
        hook.remove()
        watch.part = "workspace"


Key = TypeVar("Key")


def _along(start: Step, low: Step, high: Step, share: float, blocks: int) -> Step:
    """The step of a model that is `share` times as far from `start` as `high` is from `low`."""

    def number(begun: float, one: float, other: float) -> int:
        return round(begun + share * (other - one))

    def counted(begun: Mapping[Key, float], one: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
        keys = {**begun, **one, **other}
        return {key: begun.get(key, 0) + share * (other.get(key, 0) - one.get(key, 0)) for key in keys}

    def bytes_of(*parts: Mapping[str, int]) -> dict[str, int]:
        return {part: round(count) for part, count in counted(*parts).items()}

    return Step(
        bytes_of(start.parts, low.parts, high.parts),
        round(high.slack * (blocks / high.blocks) ** GAPS_GROWTH),
        bytes_of(start.evaluating, low.evaluating, high.evaluating),
        counted(start.learning, low.learning, high.learning),
        counted(start.updating, low.updating, high.updating),
        counted(start.judging, low.judging, high.judging),
        number(start.parameters, low.parameters, high.parameters),
        number(start.trained, low.trained, high.trained),
        blocks,
        start.packed,
        start.largest,
        start.turned,
    )
