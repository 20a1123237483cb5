"""One step of a run on fake tensors: the model, its largest batch, the optimizer step.

Memory and operations are recorded by phase.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.config.extensions import place_of_failure
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import Batch, collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.memory import enable_activation_checkpointing
from tunesmith.engine.optimizers import CUDA_ONLY
from tunesmith.engine.trainable import base_parameters, make_trainable, master_weights
from tunesmith.errors import UserError
from tunesmith.garbage_collection import only_new_objects_collected
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import packs
from tunesmith.models.prompts import plain_model
from tunesmith.modules.fused import use_fused_ops
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.modules.transposed_linear import TransposedLinear
from tunesmith.objectives.objective import Objective
from tunesmith.planner.allocators import Passes
from tunesmith.planner.fake_model import FakeReference, fake_model, pack_fake
from tunesmith.planner.fake_tensors import fake_tensors, small_copy
from tunesmith.planner.trace import PRODUCTS, Operation, Trace, Watch, again

EIGHT_BITS = 2 * (1 + 4 / 256)
"""Bytes per parameter of AdamW's two moments in 8 bits: one code each, and an fp32 scale per 256 codes (Dettmers et al.
2022, section 2.1)."""


@dataclass(frozen=True)
class Step:
    """Memory and operations of one batch and one optimizer step.

    Attributes:
        parts: bytes by part at the peak.
        slack: bytes that the allocator holds from the system beyond the parts.
        evaluation_parts: bytes by part at the peak without gradients.
        forward_backward: count of each operation in forward and backward of the batch.
        optimizer: count of each operation in the optimizer step.
        evaluation: count of each operation in the batch's loss without gradients.
        parameters: of the base.
        trained: trainable parameters.
        blocks: of the model.
        packed: whether rows are packed.
        largest: elements of the largest matrix in the blocks.
        is_transposed: whether matrices are transposed in the base's files (`modules.transposed_linear`).
    """

    parts: dict[str, int]
    slack: int
    evaluation_parts: dict[str, int]
    forward_backward: dict[Operation, float]
    optimizer: dict[Operation, float]
    evaluation: dict[Operation, float]
    parameters: int
    trained: int
    blocks: int
    packed: bool
    largest: int
    is_transposed: bool

    @property
    def scores(self) -> bool:
        """Whether attention stores a score for each pair of tokens."""
        return any("softmax" in each.name and len(each.results[0].sizes) == 4 for each in self.forward_backward)

    @property
    def products(self) -> int:
        """Distinct 16-bit matrix products, for each of which a CPU's matrix library compiles code."""
        operations = {**self.forward_backward, **self.evaluation}
        return sum(each.name.startswith(PRODUCTS) and each.precision.itemsize == 2 for each in operations)


AllocatorSimulation = Callable[[Passes], int]

Rows = Callable[[bool, bool], tuple[TokenTable, list[int]]]
"""Returns a table and the indices of the batch's rows. Arguments: whether rows are packed; whether attention stores
scores."""


@dataclass(frozen=True)
class Simulator:
    """What a step is simulated from.

    Attributes:
        recipe: with its objective resolved.
        rows: of the largest batch.
        dtype: of everything that is not quantized.
        simulate_allocator: simulates the device's allocator.
    """

    recipe: Recipe
    rows: Rows
    dtype: torch.dtype
    simulate_allocator: AllocatorSimulation

    def largest_step(self, layers: int | None, checkpointed: int | None) -> Step:
        """Simulate a step on the batch that needs the most memory, which depends on whether attention stores scores:
        the first simulation shows that. Arguments and errors are those of `step`."""
        step = self.step(layers, checkpointed, scores=False)
        if not step.scores or self.rows(step.packed, True)[1] == self.rows(step.packed, False)[1]:
            return step
        return self.step(layers, checkpointed, scores=True)

    def step(self, layers: int | None, checkpointed: int | None, scores: bool) -> Step:
        """Simulate a step.

        Args:
            layers: blocks of the model; None: all.
            checkpointed: blocks with activation checkpointing; None: as in the recipe.
            scores: whether attention stores scores.

        Raises:
            UserError: base, method and objective are not compatible, or the architecture does not run on fake tensors.
        """
        recipe, head = self.recipe, self.recipe.objective.head
        with only_new_objects_collected():
            try:
                with fake_tensors():
                    base = fake_model(recipe.base, self.dtype, head, layers)
                    pack_fake(base)
                    use_fused_ops(base, small_copy)
                    model, objective = make_trainable(recipe, base, FakeReference.find)
                    if checkpointed is not None:
                        enable_activation_checkpointing(model, checkpointed)
                    batch = self._batch(model, scores)
                    return _Simulation(recipe, model, objective, batch, self.simulate_allocator).step()
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                place = place_of_failure(recipe.extensions, error)
                raise UserError(
                    f"base: {recipe.base.path}: its memory and time cannot be predicted, because its forward pass "
                    f"needs real values ({first if place is None else f'{first}; {place}'})."
                ) from error
            finally:
                gc.collect()

    def _batch(self, model: PreTrainedModel, scores: bool) -> Batch:
        table, chosen = self.rows(packs(plain_model(model)), scores)
        if self.recipe.objective.head.reads_features(model):
            features = np.zeros((len(table), model.config.get_text_config().hidden_size), np.float32)
            table = replace(table, features=features)
        return collate(table, chosen)


class _Simulation:
    """A fake model, its optimizer and its batch, traced."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        objective: Objective,
        batch: Batch,
        simulate_allocator: AllocatorSimulation,
    ) -> None:
        self.model = model
        self.objective = objective
        self.simulate_allocator = simulate_allocator
        self.batch = batch
        self.trace = Trace()
        self.watch = Watch(self.trace, "workspace")
        plain = recipe.train.model_copy(update={"optimizer": "adamw"})
        self.in_eight_bits = recipe.train.optimizer in CUDA_ONLY
        self.masters = master_weights(model, plain if self.in_eight_bits else recipe.train, layers=objective.layers)
        trainable = [each for each in model.parameters() if each.requires_grad]
        self._hold(model, "weights")
        for other in objective.reference_models:
            self._hold(other, "reference models")
        self.watch.hold(trainable, "adapters" if recipe.method.adds_weights else "trained weights")
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
        """Evaluation, forward and backward, the optimizer step; then, for the allocator, forward and backward again,
        now beside the optimizer states."""
        evaluation, evaluation_parts = self._phase(self._evaluate)
        first = len(self.trace.events)
        forward_backward, _ = self._phase(self._forward_backward)
        last = len(self.trace.events)
        optimizer, _ = self._phase(self._step_optimizer)
        events = self.trace.events
        forward, backward = events[first : self.turn], events[self.turn : last]
        repeated = again(forward + backward)
        passes = [(events[:first], False), (forward, True), (backward + events[last:], False)]
        passes += [(repeated[: len(forward)], True), (repeated[len(forward) :], False)]
        second = len(events)
        events += repeated
        parts = self.trace.peak(second)
        plain = plain_model(self.model)
        return Step(
            parts,
            max(0, self.simulate_allocator(passes) - sum(parts.values())),
            evaluation_parts,
            forward_backward,
            optimizer,
            evaluation,
            base_parameters(self.model),
            len(self.masters.flat),
            len(blocks(plain)),
            packs(plain),
            max(_largest_matrix(layer) for block in blocks(plain) for layer in block.modules()),
            any(isinstance(layer, TransposedLinear) for layer in self.model.modules()),
        )

    def _phase(self, run: Callable[[], None]) -> tuple[dict[Operation, float], dict[str, int]]:
        """Its operations, and the bytes by part at its peak."""
        before = len(self.trace.events)
        self.trace.operations = Counter()
        run()
        return dict(self.trace.operations), self.trace.peak(before)

    def _forward_backward(self) -> None:
        self.model.train()
        with self.watch.on(), _mark_loss_memory(self.model, self.watch):
            loss = self.objective.loss(self.model, self.batch)
            self.turn = len(self.trace.events)
            torch.autograd.backward(loss)

    def _evaluate(self) -> None:
        self.model.eval()
        with self.watch.on(), torch.no_grad(), _mark_loss_memory(self.model, self.watch):
            self.objective.losses(self.model, self.batch)

    def _step_optimizer(self) -> None:
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


def rows_like(objective: ObjectiveConfig, lengths: list[int]) -> TokenTable:
    """Rows of these lengths with targets for the objective; every token of a text row counts in the loss.

    Raises:
        UserError: the objective needs real rows.
    """
    table: TokenTable | None = objective.dummy_rows(lengths)
    if table is None:
        raise UserError(f"objective: {objective.kind}: its plan needs rows. Give data.train, or --data FILE.")
    return table


def _largest_matrix(layer: nn.Module) -> int:
    """Elements of the layer's own largest matrix."""
    if isinstance(layer, QuantizedLinear):
        return layer.in_features * layer.out_features
    return max((each.numel() for each in layer.parameters(recurse=False)), default=0)


@contextmanager
def _mark_loss_memory(model: PreTrainedModel, watch: Watch) -> Iterator[None]:
    """Within the block, memory that is allocated between the end of the model's body and the backward pass's return to
    it counts as the loss's."""
    plain = plain_model(model)
    body: nn.Module = plain.get_decoder() if plain.config.is_encoder_decoder else plain.base_model

    def enter_body_backward(_: Tensor) -> None:
        watch.part = "workspace"

    def leave_body(_: nn.Module, __: object, out: object) -> None:
        watch.part = "loss"
        hidden = getattr(out, "last_hidden_state", None)
        if hidden is not None and hidden.requires_grad:
            hidden.register_hook(enter_body_backward)

    hook = body.register_forward_hook(leave_body)
    try:
        yield
    finally:
        hook.remove()
        watch.part = "workspace"
