"""The generation engine: many requests at once, which enter and leave at every step (Yu et al. 2022, "Orca").

A step computes the next tokens of every sequence in one forward pass without padding: one token of an answer, with a
draft of those after it if there are few sequences (`inference.speculative`), or a piece of a prompt. Keys and values
are in pages (`inference.pages`); a request that does not fit waits.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.inference.adapter_kinds import Adapter
from tunesmith.inference.adapters import AdapterShelf
from tunesmith.inference.cuda_graphs import CudaGraphs
from tunesmith.inference.memory import CONCURRENT, PROMPT_TOKENS, free_bytes, generation_memory
from tunesmith.inference.paged_model import VIRTUAL, PagedModel, Piece
from tunesmith.inference.pages import Pages, pages_for
from tunesmith.inference.request import Request, run_all
from tunesmith.inference.running import Running
from tunesmith.inference.sampling import Scores, random_stream
from tunesmith.inference.speculative import step_drafts
from tunesmith.modules.served_linear import AdapterRows
from tunesmith.ops.paged_attention import PAGE

LOOKAHEAD = 64
"""Waiting requests that others may overtake in one step, because their beginning is being computed."""


class Engine:
    """Args:
    model: to run.
    concurrent: the most sequences at the same time.
    prompt_tokens: the most tokens of prompts in one step.
    cache_bytes: the memory of keys and values; None: what `generation_memory` leaves for it, at most what the requests
        can use.
    cuda_graphs: on CUDA, whether steps of one token for each sequence are replayed as graphs.
    """

    def __init__(
        self,
        model: PagedModel,
        concurrent: int = CONCURRENT,
        prompt_tokens: int = PROMPT_TOKENS,
        cache_bytes: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.model = model
        self.concurrent, self.prompt_tokens = concurrent, prompt_tokens
        on_gpu = model.device.type == "cuda"
        memory = generation_memory(
            model.model, model.bytes_per_page(), free_bytes(model.device), on_gpu=on_gpu, concurrent=concurrent,
            prompt_tokens=prompt_tokens,
        )  # fmt: skip
        size = memory.cache if cache_bytes is None else cache_bytes
        total = size // memory.page
        if total < 1:
            raise UserError(f"The cache of {size:,} bytes holds not a single page of {PAGE} tokens. Free some memory.")
        useful = concurrent * pages_for(self.room or 2**20)
        self.pages = Pages(min(total, useful))
        model.allocate(self.pages.total + on_gpu)  # the last page is for the rows that fill up a graph's batch
        longest = min(self.pages.total, pages_for(self.room or 2**20))
        self.graphs = CudaGraphs(model, concurrent, longest, self.pages.total) if on_gpu and cuda_graphs else None
        self.adapters = AdapterShelf(model.shape, memory.adapters)
        self._waiting: OrderedDict[Request, None] = OrderedDict()
        self._cancelled: deque[Request] = deque()
        self._running: list[Running] = []

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def submit(self, request: Request) -> None:
        """Add a request to the queue.

        Raises:
            UserError: it is empty, longer than the model's context or than the cache, or asks for an adapter or a token
                that does not exist.
        """
        if not request.prompt:
            raise UserError("The prompt is empty, and the model has no token that begins a text. Give it some text.")
        if request.sampling.beams > 1:
            raise UserError("Beam search is for encoder–decoders. Sample several answers instead.")
        self._refuse_too_large(request, self.adapters.get(request.adapter))
        request.on_cancel = self._cancelled.append
        self._waiting[request] = None
        if request.finish:
            self._cancelled.append(request)

    def _refuse_too_large(self, request: Request, adapter: Adapter) -> None:
        """Refuse what the model's context or the cache cannot hold, after the adapter's virtual tokens."""
        room = None if self.room is None else self.room - adapter.virtual.count
        request.refuse_wrong(room, self.model.vocabulary)
        most = self._most(request, adapter)
        if pages_for(most) > self.pages.total:
            raise UserError(
                f"The request needs room for {most:,} tokens, and the cache holds {self.pages.total * PAGE:,}. Shorten "
                "it, lower max_new_tokens, or give the cache more memory."
            )

    def _most(self, request: Request, adapter: Adapter) -> int:
        """The tokens that the request takes in the cache."""
        length = adapter.virtual.count + len(request.prompt)
        if request.completion is not None:
            return length + max(len(request.completion) - 1, 0)  # nothing follows the last one
        most, context = length + request.sampling.max_new_tokens, self.model.shape.context
        return most if context is None else min(most, context)

    def run(self, requests: Sequence[Request], done: Callable[[int], None] = lambda count: None) -> None:
        """Answer the requests.

        Args:
            requests: in any order.
            done: called with the number of finished requests each time that it has grown.

        Raises:
            UserError: as `submit`.
        """
        try:
            run_all(self, requests, done)
        except BaseException:
            for request in requests:
                request.cancel()
            self._leave()
            raise

    def abandon(self, exception: Exception) -> None:
        """End every request, since a step has failed; later ones are computed again.

        Args:
            exception: that of the step.
        """
        for request in [*self._waiting, *(running.request for running in self._running)]:
            request.cancel(exception)
        self._leave()

    @property
    def room(self) -> int | None:
        """The most tokens of a prompt and its answer, without an adapter's virtual tokens; None: no limit."""
        return self.model.shape.context

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are computed at present."""
        return len(self._running)

    def step(self) -> list[Request]:
        """Compute the next tokens of every sequence. Returns the requests that have ended."""
        ended = self._leave()
        self._enter()
        pieces = self._pieces()
        if not pieces:
            return ended
        logits = self._logits([piece for _, piece in pieces], _adapter_rows(pieces))
        scores = Scores.of(logits)
        start = 0
        for running, piece in pieces:
            draft = piece.ids[len(running.ids) - piece.position :]
            running.computed += len(piece.ids) - len(draft)
            end = start + len(piece.ids) - piece.logits_from
            if end > start:
                try:
                    running.advance(scores.rows(start, end), draft)
                except Exception as exception:  # of this request's constraint or listener: the others continue
                    running.request.cancel(exception)
            self._remember(running)
            start = end
        return ended + self._leave()

    def _logits(self, pieces: Sequence[Piece], adapters: Sequence[AdapterRows]) -> Tensor:
        logits = None if self.graphs is None else self.graphs.logits(pieces, adapters)
        return self.model.compute(pieces, adapters) if logits is None else logits

    # Entering and leaving

    def _enter(self) -> None:
        """Let waiting requests in, in their order, as long as there is room for all that they can grow to."""
        entered: list[Request] = []
        overtaken = 0
        promised = sum(running.pages_to_come for running in self._running)
        being_computed = {running.next_key() for running in self._running} - {None}
        for request in self._waiting:
            if len(self._running) == self.concurrent or overtaken == LOOKAHEAD:
                break
            try:
                running = self._begun(request)
            except UserError as error:  # its adapter was removed, or changed on disk, while it waited
                request.cancel(error)
                continue
            key = running.next_key()
            if key is not None and key in being_computed and not self.pages.knows(key):  # it will be in the cache soon
                self.pages.give_back(running.pages)
                overtaken += 1
                continue
            if running.pages_to_come > self.pages.available - promised:
                self.pages.give_back(running.pages)
                break
            promised += running.pages_to_come
            being_computed |= {key} - {None}
            entered.append(request)
            self._running.append(running)
            virtual = running.adapter.virtual
            if running.computed < virtual.stored:
                self._grow(running, virtual.stored)
                self.model.store(running.pages, running.computed, virtual.keys_and_values)
                running.computed = virtual.stored
            request.cached_tokens = max(0, running.computed - virtual.count)
        for request in entered:
            del self._waiting[request]

    def _begun(self, request: Request) -> Running:
        """The request with all pages from the cache that it begins with; its last token is always computed."""
        adapter = self.adapters.get(request.adapter)
        self._refuse_too_large(request, adapter)  # it may have been replaced by one with more virtual tokens
        generator = random_stream(request.sampling.seed, request.number)
        ids = [VIRTUAL] * adapter.virtual.count + [*request.prompt]
        last = len(ids) - 1
        if request.completion is not None:
            ids += request.completion[:-1]
        running = Running(request, adapter, generator, ids, self._most(request, adapter), adapter.identity)
        while (running.known + 1) * PAGE <= last:
            key = running.next_key()
            found = None if key is None else self.pages.find(key)
            if found is None:
                break
            page, running.parent = found
            running.pages.append(page)
            running.known += 1
            running.computed += PAGE
        return running

    def _leave(self) -> list[Request]:
        """Take ended requests out. Returns them."""
        ended = []
        while self._cancelled:
            request = self._cancelled.popleft()
            if request in self._waiting:
                del self._waiting[request]
                ended.append(request)
        for running in [each for each in self._running if each.request.finish]:
            self.pages.give_back(running.pages)
            self._running.remove(running)
            ended.append(running.request)
        return ended

    # A step

    def _pieces(self) -> list[tuple[Running, Piece]]:
        """What is computed in this step: each sequence's piece. Prompts get their share in the order in which they
        came; then pieces of the same adapter are put next to each other."""
        budget = self.prompt_tokens
        ends: dict[Running, int] = {}
        for running in self._running:
            left = len(running.ids) - running.computed
            count = min(left, budget) if left > 1 else left
            if count:
                budget -= count if left > 1 else 0
                ends[running] = running.computed + count
        # Graphs replay steps of one token for each sequence, at a fraction of the time of others.
        drafts = step_drafts(ends, self.model.vocabulary) if self.graphs is None else {}
        pieces: list[tuple[Running, Piece]] = []
        for running, end in ends.items():
            ids = [*running.ids[running.computed : end], *drafts.get(running, ())]
            self._grow(running, running.computed + len(ids))
            virtual = running.adapter.virtual.embeddings
            piece = Piece(ids, running.computed, running.pages, running.logits_from(end), virtual)
            pieces.append((running, piece))
        return sorted(pieces, key=lambda each: each[0].adapter.identity)

    def _grow(self, running: Running, tokens: int) -> None:
        while len(running.pages) < pages_for(tokens):
            running.pages.append(self.pages.take())

    def _remember(self, running: Running) -> None:
        """Make the pages known that are full of computed tokens."""
        while (running.known + 1) * PAGE <= running.computed:
            key = running.next_key()
            assert key is not None
            running.parent = self.pages.remember(running.pages[running.known], key)
            running.known += 1


def _adapter_rows(pieces: Sequence[tuple[Running, Piece]]) -> list[AdapterRows]:
    """Which of the pieces' rows have which adapter, for those that do something to layers."""
    found: list[AdapterRows] = []
    first = 0
    for running, piece in pieces:
        count, layers = len(piece.ids), running.adapter.layers
        if found and found[-1][2] is layers:  # sequences of an adapter are next to each other
            found[-1] = (found[-1][0], found[-1][1] + count, layers)
        elif layers.own:
            found.append((first, count, layers))
        first += count
    return found
