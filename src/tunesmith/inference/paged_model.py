"""A model as the generation engine runs it: parts of many sequences in one forward pass, over paged caches."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.inference.adapter_kinds import BaseShape
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import PagedStep, first_position, probe_ids, use_document_attention
from tunesmith.models.forward import model_logits
from tunesmith.models.prompts import has_prompt, plain_model
from tunesmith.modules.fused import use_fused_ops
from tunesmith.modules.rowwise import RowwiseFunctions, serve_activations
from tunesmith.modules.served_block import Attended, ServedBlock, serve_block
from tunesmith.modules.served_experts import serve_experts
from tunesmith.modules.served_linear import AdapterRows, BatchAdapters, serve_linears
from tunesmith.modules.transposed_linear import as_linear
from tunesmith.ops.document_attention import Prefix
from tunesmith.ops.paged_attention import TILE, LayerCache, Layout, Part

VIRTUAL = -1
"""Stands for a virtual token in a sequence's ids."""

TOLERANCE = 1e-2
"""As a fraction of the hidden states' norm: a family's states from a cache against its states in one pass. In bf16 they
differ by less; states of a family that pages would break differ by a third or more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of a sequence, to compute.

    Attributes:
        ids: the tokens; `VIRTUAL` for an adapter's virtual ones.
        position: how many tokens of the sequence are before them.
        pages: the sequence's.
        logits_from: the logits after the piece's tokens from this one on are returned; len(ids): none.
        virtual: the embeddings (tokens, hidden) of the sequence's first tokens; None: all tokens have ids.
    """

    ids: Sequence[int]
    position: int
    pages: Sequence[int]
    logits_from: int
    virtual: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """What a model's layers have become for the engine.

    Attributes:
        adapters: where a batch's adapters are put.
        linears: the number of each replaced linear layer by its name.
        rowwise: how functions of activations are computed; None: as PyTorch does.
    """

    adapters: BatchAdapters
    linears: Mapping[str, int]
    rowwise: RowwiseFunctions | None


def serve(model: PreTrainedModel) -> Served:
    """Replace a model's layers in place by those for inference: packed on a CPU, each row as it would be alone."""
    plain = plain_model(model.eval())
    use_fused_ops(as_linear(plain))
    serve_experts(plain)
    adapters, linears = serve_linears(plain)
    if model.device.type != "cpu":
        return Served(adapters, linears, None)
    serve_activations(plain)
    return Served(adapters, linears, RowwiseFunctions())


def as_it_is(model: PreTrainedModel) -> Served:
    """Leave a model as it is, such as one in training, with the adapter's layers in place."""
    return Served(BatchAdapters(), {}, None)


class PagedModel:
    """Args:
    model: one that packs (`models.attention.packs`).
    in_int8: whether its caches are in int8.
    serve: makes its layers what they are for the engine.
    """

    def __init__(
        self, model: PreTrainedModel, in_int8: bool = False, serve: Callable[[PreTrainedModel], Served] = serve
    ) -> None:
        self.model, self.in_int8 = model, in_int8
        served = serve(model)
        self.adapters, self._linears, self.rowwise = served.adapters, served.linears, served.rowwise
        plain = plain_model(model)
        self.device = model.device
        self.vocabulary: int = plain.config.get_text_config().vocab_size
        self._first_position = first_position(plain)
        self.caches: dict[int, LayerCache] = {}
        self._pages = 0

    @cached_property
    def shape(self) -> BaseShape:
        """What an adapter has to fit on. The heads are found by computing one token."""
        plain = plain_model(self.model)
        modules = dict(plain.named_modules(remove_duplicate=False))
        step = _Recording({}, 1, Layout([Part(1, 0, [0])]))
        with torch.no_grad():
            self.run([0], [0], step)
        return BaseShape(
            self._linears,
            {number: (modules[name].in_features, modules[name].out_features) for name, number in self._linears.items()},
            plain.get_input_embeddings().weight.shape[1],
            {each.layer: (each.kv_heads, each.dim, each.value_dim) for each in step.attended},
            getattr(plain.config.get_text_config(), "max_position_embeddings", None),
        )

    @property
    def products(self) -> int:
        """Multiplications of one token with the weights of linear layers."""
        return sum(inputs * outputs for inputs, outputs in self.shape.sizes.values())

    def bytes_per_page(self) -> int:
        """The memory of a page in all layers, known once a token has been computed."""
        if not self.caches:
            self.allocate(1)
            self.compute([Piece([0], 0, [0], 1)])
        return sum(cache.bytes_per_page for cache in self.caches.values())

    def allocate(self, pages: int) -> None:
        """Give the cache that many pages, and forget what is in it."""
        self.caches, self._pages = {}, pages

    @torch.no_grad()
    def store(self, pages: Sequence[int], position: int, keys_and_values: Sequence[Prefix]) -> None:
        """Put trained keys and values at the beginning of a sequence.

        Args:
            pages: the sequence's.
            position: the first token that is stored; those before it are in the pages.
            keys_and_values: of each layer, (1, kv_heads, tokens, dim).
        """
        if not self.caches:
            self.compute([Piece([0], 0, pages, 1)])
        for layer, parts in enumerate(keys_and_values):
            keys, values = (part[:, :, position:].to(self.device) for part in parts)
            self.caches[layer].store(pages, position, keys, values)

    @torch.no_grad()
    def compute(self, pieces: Sequence[Piece], adapters: Sequence[AdapterRows] = ()) -> Tensor:
        """Compute the pieces' tokens, and store their keys and values.

        Args:
            pieces: of different sequences, with room in their pages.
            adapters: of the rows of the concatenated pieces.

        Returns:
            The logits (rows, vocabulary), fp32 or wider, of each piece's rows from `logits_from`, one piece after
            another.
        """
        ids = [token for piece in pieces for token in piece.ids]
        positions = [piece.position + index for piece in pieces for index in range(len(piece.ids))]
        layout = self.layout([Part(len(piece.ids), piece.position, piece.pages) for piece in pieces])
        wanted, embedded, start = list[int](), list[tuple[int, Tensor]](), 0
        for piece in pieces:
            wanted += range(start + piece.logits_from, start + len(piece.ids))
            if piece.virtual is not None:
                embedded.append((start, piece.virtual[piece.position : piece.position + len(piece.ids)]))
            start += len(piece.ids)
        try:
            self.adapters.use(adapters)
            with self._embedded(embedded):
                hidden = self.run(ids, positions, PagedStep(self.caches, self._pages, layout, self.in_int8))
            self.adapters.use(_among(wanted, adapters))
            return model_logits(self.model, hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)])
        finally:
            self.adapters.use(())

    def layout(self, parts: Sequence[Part]) -> Layout:
        """The layout of a batch on this model's device."""
        return Layout(parts, self.device, None if self.device.type == "cpu" else TILE)

    @torch.no_grad()
    def logits_of_all(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """The logits (tokens, vocabulary) after every token. The host reads no value, so a CUDA graph can contain it.

        Args:
            ids: (tokens,), none of them virtual.
            positions: (tokens,), in their sequences.
            layout: of the batch.
        """
        hidden = self._hidden(ids, positions, PagedStep(self.caches, self._pages, layout, self.in_int8))
        return model_logits(self.model, hidden)

    def run(self, ids: Sequence[int], positions: Sequence[int], step: PagedStep) -> Tensor:
        """The last hidden states (tokens, hidden) of a step's tokens."""
        rows = torch.tensor(ids, device=self.device).clamp_min(0)
        return self._hidden(rows, torch.tensor(positions, device=self.device), step)

    def _hidden(self, ids: Tensor, positions: Tensor, step: PagedStep) -> Tensor:
        base = plain_model(self.model).base_model
        with self.rowwise or nullcontext():
            hidden: Tensor = base(
                input_ids=ids[None], position_ids=positions[None] + self._first_position, use_cache=False, paged=step
            ).last_hidden_state[0]
        return hidden

    @contextmanager
    def _embedded(self, rows: Sequence[tuple[int, Tensor]]) -> Iterator[None]:
        """Within the block, put embeddings (tokens, hidden) in place of those of the batch's rows from a first one on.
        The others' are computed from their ids in any case, so that no bit of theirs depends on it."""

        def put(module: nn.Module, arguments: Any, out: Tensor) -> None:
            for first, own in rows:
                out[0, first : first + len(own)] = own.to(out.device, out.dtype)

        handle = plain_model(self.model).get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


class _Recording(PagedStep):
    """A step that records how each layer calls attention."""

    def __init__(self, layers: dict[int, LayerCache], pages: int, layout: Layout, in_int8: bool = False) -> None:
        super().__init__(layers, pages, layout, in_int8)
        self.attended: list[Attended] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, **options: Any) -> Tensor:
        shape = (k.shape[1], q.shape[1], q.shape[3], v.shape[3])
        attended = Attended(layer, *shape, scale, options["window"], options["softcap"], options["sinks"])
        self.attended.append(attended)
        return super().attend(layer, q, k, v, scale, **options)


@torch.no_grad()
def serve_blocks(paged: PagedModel) -> int:
    """Replace the computation of every block that one native call computes to the same bits. Returns how many."""
    plain = plain_model(paged.model)
    if paged.device.type != "cpu" or plain.dtype != torch.float32:
        return 0
    calls: dict[nn.Module, tuple[Any, Any, Any, Attended]] = {}
    paged.allocate(2)
    step = _Recording(paged.caches, 2, Layout([Part(3, 0, [0]), Part(2, 0, [1])]), paged.in_int8)

    def record(block: nn.Module, arguments: Any, options: Any, out: Any) -> None:
        if len(step.attended) == len(calls) + 1:
            calls[block] = (arguments, options, out, step.attended[-1])

    try:
        stack = blocks(plain)
    except UserError:
        return 0
    handles = [block.register_forward_hook(record, with_kwargs=True) for block in stack]
    ids = probe_ids(plain)[:5].tolist()
    try:
        paged.run(ids, [0, 1, 2, 0, 1], step)
    finally:
        for handle in handles:
            handle.remove()
    return sum(_serve(block, *call) for block, call in calls.items())


def _serve(block: nn.Module, arguments: Any, options: Any, out: Any, attended: Attended) -> bool:
    """Whether the native call computes what the block did, for one of the activations; then it does from now on."""
    angles = options.get("position_embeddings")
    if not isinstance(out, Tensor) or len(arguments) != 1 or not isinstance(angles, tuple):
        return False
    if len(angles) != 2 or any(angle.shape != (1, out.shape[1], attended.dim) for angle in angles):
        return False
    for gelu in (False, True):
        try:
            served = ServedBlock(block, attended, gelu)
        except AttributeError:
            return False
        if torch.equal(served.forward(arguments[0], *angles, options["paged"]), out):
            serve_block(block, served)
            return True
    return False


def _among(wanted: Sequence[int], adapters: Sequence[AdapterRows]) -> list[AdapterRows]:
    """The adapters of the wanted rows, which are in ascending order, by their ranges among these."""
    ranges = [(bisect_left(wanted, first), bisect_left(wanted, first + count)) for first, count, _ in adapters]
    return [(first, end - first, weights) for (first, end), (_, _, weights) in zip(ranges, adapters, strict=True)]


def paged_model(model: PreTrainedModel, in_int8: bool = False) -> PagedModel | None:
    """The model for the engine; None if its family cannot be computed over paged caches. There is no list of families:
    each model is tried on a few tokens, in one pass and in two. A prompt in PEFT's wrapper is not the model's.

    Args:
        model: its linear layers are replaced in place.
        in_int8: whether its caches are in int8.
    """
    if has_prompt(model):
        return None
    paged = _tried(model, in_int8, serve)
    if paged is not None:
        if paged.rowwise is not None and not paged.rowwise.used:
            paged.rowwise = None  # each call of PyTorch's passes through it
        serve_blocks(paged)
    return paged


def model_in_training(model: PreTrainedModel) -> PagedModel | None:
    """A model in training for the engine, as it is; None if its family cannot be computed over paged caches.

    Args:
        model: in evaluation mode. None of its layers is replaced, and none of its weights is copied. PEFT's virtual
            tokens are not part of it.
    """
    return _tried(model, False, as_it_is)


def _tried(model: PreTrainedModel, in_int8: bool, serve: Callable[[PreTrainedModel], Served]) -> PagedModel | None:
    """The model over paged caches, if it computes the same in one pass and in two."""
    plain = plain_model(model)
    if plain.config.is_encoder_decoder or not use_document_attention(plain):
        return None
    try:
        paged = PagedModel(model, in_int8, serve)
        paged.allocate(2)
        ids = probe_ids(plain)[:5].tolist()
        together = paged.compute([Piece(ids, 0, [0], 0), Piece(ids[:3], 0, [1], 0)])
        whole, first = together[:5], together[5:]
        second = paged.compute([Piece(ids[3:], 3, [1], 0)])
    except (UserError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    difference = torch.linalg.vector_norm(torch.cat([first, second]) - whole)
    return None if difference > TOLERANCE * torch.linalg.vector_norm(whole) else paged
