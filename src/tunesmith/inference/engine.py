"""The generation engine: many requests at once, which enter and leave at every step (Yu et al. 2022, "Orca").

A step computes the next tokens of every sequence in one forward pass without padding: one token of an answer, with a
draft of those after it if there are few sequences (`inference.drafts`), or a piece of a prompt. Keys and values are in
pages (`inference.pages`); a request that does not fit waits.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, NamedTuple, Protocol

import psutil
import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.inference.adapter_kinds import Adapter
from tunesmith.inference.adapters import AdapterShelf
from tunesmith.inference.constraint import Constraint
from tunesmith.inference.cuda_graphs import CudaGraphs
from tunesmith.inference.drafts import Acceptance, Drafter
from tunesmith.inference.memory import CONCURRENT, PROMPT_TOKENS, generation_memory
from tunesmith.inference.paged_model import VIRTUAL, PagedModel, Piece
from tunesmith.inference.pages import Key, Pages, pages_for
from tunesmith.inference.sampling import Sampling, chosen, random_stream, refuse_wrong
from tunesmith.modules.served_linear import AdapterRows
from tunesmith.ops.paged_attention import PAGE

FinishReason = Literal["stop", "length", "cancelled"]

Alternatives = tuple[tuple[int, float], ...]
"""Tokens and their log p in nats, the most likely first."""

LOOKAHEAD = 64
"""Waiting requests that others may overtake in one step, because their beginning is being computed."""

DRAFTED_ROWS = 12
"""Rows of a step up to which tokens are drafted. The CPU's kernels compute so many in one tile (`native/packed.h`), and
mostly wait for the weights then; a row more costs as much as it is worth at best."""

ROW_COST = 0.05
"""The time of a row more, as a share of a step of one row: measured for 2 to 12 rows of SmolLM2-135M on a CPU."""


@dataclass(eq=False)
class Request:
    """A text to continue, or to score.

    Attributes:
        prompt: its token ids.
        sampling: how tokens are chosen.
        stops: ids that end the answer.
        number: of the request among those with the same seed; each has its own random numbers.
        adapter: the name of an adapter; None: the model as it is.
        completion: with it, nothing is generated: these tokens are scored as the answer.
        constraint: on the answer's tokens.
        drafter: guesses the answer's next tokens, so that several are computed at once; None: no guesses.
        on_token: called with each token of the answer; returns whether the answer ends with it.
        tokens: the answer so far.
        log_probabilities: log p of each of its tokens by the model itself, without temperature, in nats.
        alternatives: with `top_logprobs`, the most likely tokens in place of each of its tokens, with log p.
        finish: why the answer ended; None as long as it has not.
        exception: why it could not be answered; it is cancelled then.
        on_cancel: set by the engine that has the request in its queue; called when it is cancelled.
        cached_tokens: how many of the prompt's tokens were in the cache.
        first_token_seconds: from `submitted` to the first token.
        submitted: when the request was made.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    number: int = 0
    adapter: str | None = None
    completion: Sequence[int] | None = None
    constraint: Constraint | None = None
    drafter: Drafter | None = None
    on_token: Callable[[int], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    finish: FinishReason | None = None
    exception: Exception | None = None
    on_cancel: "Callable[[Request], None] | None" = field(default=None, init=False, repr=False)
    cached_tokens: int = 0
    first_token_seconds: float | None = None
    submitted: float = field(default_factory=time.perf_counter)

    def take(self, token: int, log_probability: float) -> bool:
        """Take the next token, which may end the answer.

        Args:
            token: its id.
            log_probability: by the model itself, in nats.

        Returns:
            Whether it is part of the answer: a stop token is not.
        """
        if token in self.stops:
            self.finish = "stop"
            return False
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)
        complete = self.constraint is not None and self.constraint.add(token)
        if (self.on_token is not None and self.on_token(token)) or complete:
            self.finish = self.finish or "stop"
        return True

    def refuse_wrong(self, room: int | None, vocabulary: int) -> None:
        """Refuse what no model of that context and vocabulary can answer.

        Args:
            room: the most tokens of prompt and answer; None: no limit.
            vocabulary: how many tokens the model scores.

        Raises:
            UserError: the text is too long, or a setting cannot be followed.
        """
        length = len(self.prompt) + len(self.completion or ())
        if room is not None and length >= room + (self.completion is not None):
            raise UserError(f"The chat has {length:,} tokens, and the model's context holds {room:,}. Shorten it.")
        refuse_wrong(self.sampling, vocabulary)

    def cancel(self, exception: Exception | None = None) -> None:
        """End the request; its room is free after the next step.

        Args:
            exception: why it could not be answered.
        """
        self.exception = self.exception or exception
        if self.finish is None:
            self.finish = "cancelled"
            if self.on_cancel is not None:
                self.on_cancel(self)


def _free_bytes(device: torch.device) -> int:
    """The free memory of the device, with what PyTorch holds of a GPU's for new tensors."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


@dataclass(eq=False)
class _Running:
    """A request in the cache.

    Attributes:
        adapter: what computes it beside the base.
        ids: the adapter's virtual tokens, the prompt, and the answer so far.
        most: tokens that it can grow to.
        computed: how many of its tokens are in the cache.
        known: how many of its pages are known by their content.
        parent: what the next page's key begins with.
        acceptance: of the tokens that were drafted for it.
    """

    request: Request
    adapter: Adapter
    generator: torch.Generator
    ids: list[int]
    most: int
    parent: object
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    known: int = 0
    acceptance: Acceptance = field(default_factory=Acceptance)

    def next_key(self) -> Key | None:
        """The key of the first page that is not known yet; None if its tokens are not all there."""
        tokens = tuple(self.ids[self.known * PAGE : (self.known + 1) * PAGE])
        return (self.parent, tokens) if len(tokens) == PAGE else None

    @property
    def pages_to_come(self) -> int:
        return pages_for(self.most) - len(self.pages)


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
            model.model, model.bytes_per_page(), _free_bytes(model.device), on_gpu=on_gpu, concurrent=concurrent,
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
        self._running: list[_Running] = []

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
            return length + len(request.completion)
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
                    self._advance(running, Scores(*(each[start:end] for each in scores)), draft)
                except Exception as exception:  # of this request's constraint or listener: others go on
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

    def _begun(self, request: Request) -> _Running:
        """The request with all pages from the cache that it begins with; its last token is always computed."""
        adapter = self.adapters.get(request.adapter)
        self._refuse_too_large(request, adapter)  # it may have been replaced by one with more virtual tokens
        generator = random_stream(request.sampling.seed, request.number)
        ids = [VIRTUAL] * adapter.virtual.count + [*request.prompt]
        last = len(ids) - 1
        if request.completion is not None:
            ids += request.completion[:-1]
        running = _Running(request, adapter, generator, ids, self._most(request, adapter), adapter.identity)
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

    def _pieces(self) -> list[tuple[_Running, Piece]]:
        """What is computed in this step: each sequence's piece. Prompts get their share in the order in which they
        came; then pieces of the same adapter are put next to each other."""
        budget = self.prompt_tokens
        ends: dict[_Running, int] = {}
        for running in self._running:
            left = len(running.ids) - running.computed
            count = min(left, budget) if left > 1 else left
            if count:
                budget -= count if left > 1 else 0
                ends[running] = running.computed + count
        drafts = self._drafts(ends)
        pieces: list[tuple[_Running, Piece]] = []
        for running, end in ends.items():
            ids = [*running.ids[running.computed : end], *drafts.get(running, ())]
            self._grow(running, running.computed + len(ids))
            virtual = running.adapter.virtual.embeddings
            piece = Piece(ids, running.computed, running.pages, self._logits_from(running, end), virtual)
            pieces.append((running, piece))
        return sorted(pieces, key=lambda each: each[0].adapter.identity)

    def _drafts(self, ends: Mapping[_Running, int]) -> dict[_Running, Sequence[int]]:
        """What may follow the sequences that are computed to their last token, as long as the step has few rows."""
        if self.graphs is not None:  # they replay steps of one token for each sequence, at a fraction of others' time
            return {}
        writing = [each for each, end in ends.items() if end == len(each.ids) and each.request.completion is None]
        rows = sum(end - running.computed for running, end in ends.items())
        share = (DRAFTED_ROWS - rows) // max(1, len(writing))
        counts: dict[Drafter, dict[_Running, int]] = {}
        for running in writing:
            drafter, most = running.request.drafter, min(share, running.most - len(running.ids) - 1)
            if drafter is None or most < 1:
                continue
            # A step's time is worth a token to each sequence, so that a row costs more where there are more of them.
            count = running.acceptance.length(most, drafter.cost + ROW_COST * len(writing))
            if count:
                counts.setdefault(drafter, {})[running] = count
        return {
            running: draft
            for drafter, own in counts.items()
            for running, draft in zip(own, self._drafted(drafter, own), strict=True)
        }

    def _drafted(self, drafter: Drafter, counts: Mapping[_Running, int]) -> list[list[int]]:
        """The drafter's guesses for these sequences, up to the first that is no token of this model."""
        texts = [running.ids[running.adapter.virtual.count :] for running in counts]
        drafts = drafter.drafts(texts, list(counts.values()))
        return [list(takewhile(lambda token: token < self.model.vocabulary, draft)) for draft in drafts]

    def _logits_from(self, running: _Running, end: int) -> int:
        """The first token of the piece until `end` whose logits are needed."""
        if running.request.completion is not None:
            first = running.adapter.virtual.count + len(running.request.prompt) - 1
            return min(max(first, running.computed), end) - running.computed
        return end - running.computed - (end == len(running.ids))

    def _grow(self, running: _Running, tokens: int) -> None:
        while len(running.pages) < pages_for(tokens):
            running.pages.append(self.pages.take())

    def _remember(self, running: _Running) -> None:
        """Make the pages known that are full of computed tokens."""
        while (running.known + 1) * PAGE <= running.computed:
            key = running.next_key()
            assert key is not None
            running.parent = self.pages.remember(running.pages[running.known], key)
            running.known += 1

    def _advance(self, running: _Running, scores: "Scores", draft: Sequence[int]) -> None:
        """Score the completion's tokens, or choose the next ones: one more than the draft's tokens that were right."""
        request = running.request
        if request.completion is not None:
            _score(request, request.completion, scores)
            return
        before = running.computed
        for row, guess in enumerate((*draft, None)):
            if request.finish or not _choose(running, Scores(*(each[row : row + 1] for each in scores))):
                break
            if running.ids[-1] != guess:
                break
            running.computed += 1  # the guess is in the cache; what the cache has beyond it is written over
        running.acceptance.add(len(draft), running.computed - before)


class Runs(Protocol):
    """What answers requests step by step."""

    @property
    def is_idle(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    def submit(self, request: Request) -> None: ...
    def step(self) -> list[Request]: ...
    def abandon(self, exception: Exception) -> None: ...


def run_all(engine: Runs, requests: Sequence[Request], done: Callable[[int], None]) -> None:
    """Submit the requests, and step until all have ended. Arguments are those of `Engine.run`.

    Raises:
        Exception: why a request could not be submitted or answered.
    """
    finished = 0
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        ended = engine.step()
        for request in ended:
            if request.exception is not None:
                raise request.exception
        if ended:
            finished += len(ended)
            done(finished)


class Scores(NamedTuple):
    """What a step computed for some rows.

    Attributes:
        logits: (rows, vocabulary).
        totals: (rows,), their log-sum-exp.
        best: (rows,), the most likely token, on the host.
        best_logs: (rows,), its log p in nats, on the host.
    """

    logits: Tensor
    totals: Tensor
    best: Tensor
    best_logs: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "Scores":
        """The scores of all rows. Two transfers from a GPU serve every greedy answer."""
        totals = torch.logsumexp(logits, -1)
        highest, best = logits.max(-1)
        return cls(logits, totals, best.cpu(), (highest - totals).cpu())

    def log_probability(self, token: int) -> float:
        """log p of a token in the first row."""
        if token == int(self.best[0]):
            return float(self.best_logs[0])
        return float(self.logits[0, token] - self.totals[0])


def _score(request: Request, completion: Sequence[int], scores: Scores) -> None:
    """Take the scores of the completion's next tokens."""
    done = len(request.tokens)
    tokens = list(completion[done : done + len(scores.logits)])
    found = scores.logits[torch.arange(len(tokens)), torch.tensor(tokens, dtype=torch.long)] - scores.totals
    request.tokens += tokens
    request.log_probabilities += found.tolist()
    if len(request.tokens) == len(completion):
        request.finish = "length"


def _choose(running: _Running, scores: Scores) -> bool:
    """Choose the next token by the scores of one row. Returns whether it is part of the answer."""
    request, logits = running.request, scores.logits
    if request.sampling.takes_the_likeliest and request.constraint is None:
        token = int(scores.best[0])
    else:
        prompt = running.ids[: len(running.ids) - len(request.tokens)]
        allowed = None if request.constraint is None else request.constraint.allowed()
        token = chosen(logits[0].cpu(), request.sampling, prompt, request.tokens, running.generator, allowed)
    if request.first_token_seconds is None:
        request.first_token_seconds = time.perf_counter() - request.submitted
    if not request.take(token, scores.log_probability(token)):
        return False
    if request.sampling.top_logprobs:
        values, ids = logits[0].topk(request.sampling.top_logprobs)
        request.alternatives.append(tuple(zip(ids.tolist(), (values - scores.totals[0]).tolist(), strict=True)))
    running.ids.append(token)
    if len(running.ids) == running.most:
        request.finish = request.finish or "length"
    return True


def _adapter_rows(pieces: Sequence[tuple[_Running, Piece]]) -> list[AdapterRows]:
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
