"""Steps of one token for each sequence as CUDA graphs: their kernels are launched with one call.

A step of a small batch takes a GPU less time than the host takes to launch its kernels. A graph replays the kernels of
one recorded step on the same memory, so the step's inputs are put into buffers that stay, and its batch is filled up to
one of a few sizes. The rows that fill it up write to a page that no sequence has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.inference.paged_model import PagedModel, Piece
from tunesmith.models.prompts import plain_model
from tunesmith.modules.served_linear import AdapterRows
from tunesmith.ops.paged_attention import PAGE, Part


def batch_size(rows: int) -> int:
    """The rows of the graph for a batch: the next power of two."""
    return 1 << (rows - 1).bit_length()


class StaticStep:
    """A step of up to `rows` sequences, in buffers that stay.

    Args:
        model: to run.
        rows: of the batch.
        pages: the most of a sequence.
        scratch: a page that no sequence has.
    """

    def __init__(self, model: PagedModel, rows: int, pages: int, scratch: int) -> None:
        self._model, self._scratch = model, scratch
        self._layout = model.layout([Part(1, pages * PAGE - 1, [scratch] * pages)] * rows)
        on_cuda = model.device.type == "cuda"
        self._on_host = torch.zeros(2 + pages, rows, dtype=torch.long, pin_memory=on_cuda)
        self._inputs = self._on_host.to(model.device)  # ids, positions, then one page of every sequence after another

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Put the pieces, of one token each, into the buffers; what is left of them is filled up."""
        host = self._on_host.numpy()
        host[:2] = 0
        host[2] = self._scratch
        used = 1
        for row, piece in enumerate(pieces):
            count = piece.position // PAGE + 1
            host[0, row], host[1, row] = piece.ids[0], piece.position
            host[2 : 2 + count, row] = piece.pages[:count]
            used = max(used, count)
        self._inputs[: 2 + used].copy_(self._on_host[: 2 + used])

    def run(self) -> Tensor:
        """The logits (rows, vocabulary) after the tokens in the buffers."""
        ids, positions, pages = self._inputs[0], self._inputs[1], self._inputs[2:]
        self._layout.rows[:, 2].copy_(positions)
        self._layout.pages.view(-1, len(pages)).copy_(pages.T)
        return self._model.logits_of_all(ids, positions, self._layout)


class CudaGraphs:
    """The graphs of a model, each recorded when its batch size first comes.

    Args:
        model: to run, with its cache allocated; the graphs end with that cache.
        most_rows: of a batch.
        most_pages: of a sequence.
        scratch: a page that no sequence has.
        record: makes a graph of a step; returns what replays it and returns its logits.
    """

    def __init__(
        self,
        model: PagedModel,
        most_rows: int,
        most_pages: int,
        scratch: int,
        record: Callable[[PagedModel, StaticStep], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._model, self._caches = model, model.caches
        self._most_rows, self._most_pages, self._scratch = most_rows, most_pages, scratch
        self._record = record or recorded
        self._steps: dict[int, tuple[StaticStep, Callable[[], Tensor]]] = {}
        self.failure: str | None = None

    def logits(self, pieces: Sequence[Piece], adapters: Sequence[AdapterRows]) -> Tensor | None:
        """`PagedModel.compute`, valid until the next call; None if no graph is for such a step."""
        if self.failure or adapters or len(pieces) > self._most_rows or self._model.caches is not self._caches:
            return None
        if any(len(each.ids) > 1 or each.ids[0] < 0 or each.logits_from for each in pieces):
            return None
        rows = batch_size(len(pieces))
        if rows not in self._steps:
            step = StaticStep(self._model, rows, self._most_pages, self._scratch)
            step.fill(pieces)
            try:
                self._steps[rows] = step, self._record(self._model, step)
            except RuntimeError as error:  # a layer that reads values on the host, as some experts do
                self.failure = str(error)
                return None
        step, replay = self._steps[rows]
        step.fill(pieces)
        return replay()[: len(pieces)]


def recorded(model: PagedModel, step: StaticStep) -> Callable[[], Tensor]:
    """Record a step as a graph.

    Returns:
        What replays it and returns its logits.

    Raises:
        RuntimeError: a layer waits for the GPU, which a graph cannot.
    """
    side = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(model.device))
    with torch.cuda.stream(side):  # kernels are compiled and libraries initialized before the recording
        step.run()
        with _refusing_waits(model):
            step.run()
    torch.cuda.current_stream(model.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU
        logits = step.run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


@contextmanager
def _refusing_waits(model: PagedModel) -> Iterator[None]:
    """In this context, a layer that waits for the GPU raises RuntimeError. A failed recording would do the same, but
    leave PyTorch's random numbers unusable. Masks are made outside of layers; transformers waits there only while
    nothing is recorded."""
    children = plain_model(model.model).base_model.children()
    layers = [layer for child in children for layer in (child if isinstance(child, nn.ModuleList) else [child])]
    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")))
        handles.append(layer.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default")))
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for handle in handles:
            handle.remove()
