"""A request in the generation engine's cache, and how it takes its next tokens."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.inference.adapter_kinds import Adapter
from tunesmith.inference.drafts import Acceptance
from tunesmith.inference.pages import Key, pages_for
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Scores, chosen
from tunesmith.ops.paged_attention import PAGE


@dataclass(eq=False)
class Running:
    """A request in the cache.

    Attributes:
        request: its prompt, settings and answer.
        adapter: what computes it beside the base.
        generator: of the answer's random numbers.
        ids: the adapter's virtual tokens, the prompt, and the answer so far.
        most: tokens that it can grow to.
        parent: what the next page's key begins with.
        computed: how many of its tokens are in the cache.
        pages: that its keys and values are in.
        known: how many of its pages are known by their content.
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
        """How many pages it can still take."""
        return pages_for(self.most) - len(self.pages)

    @property
    def text(self) -> list[int]:
        """The prompt and the answer so far, without the adapter's virtual tokens."""
        return self.ids[self.adapter.virtual.count :]

    def logits_from(self, end: int) -> int:
        """The first token whose logits are needed of a piece that ends before `end`.

        Args:
            end: one past the last token that is computed, without a draft.

        Returns:
            Its place in the piece.
        """
        if self.request.completion is not None:
            first = self.adapter.virtual.count + len(self.request.prompt) - 1
            return min(max(first, self.computed), end) - self.computed
        return end - self.computed - (end == len(self.ids))

    def advance(self, scores: Scores, draft: Sequence[int]) -> None:
        """Score the completion's tokens, or choose the next ones: one more than the draft's tokens that were right.

        Args:
            scores: of the tokens that the step has computed, the draft's last.
            draft: guesses of the next tokens.
        """
        request = self.request
        if request.completion is not None:
            self._score(request.completion, scores)
            return
        before = self.computed
        for row, guess in enumerate((*draft, None)):
            if request.finish or not self._choose(scores.rows(row, row + 1)):
                break
            if self.ids[-1] != guess:
                break
            self.computed += 1  # the guess is in the cache; what the cache has beyond it is written over
        self.acceptance.add(len(draft), self.computed - before)

    def _score(self, completion: Sequence[int], scores: Scores) -> None:
        """Take the scores of the completion's next tokens."""
        request = self.request
        done = len(request.tokens)
        tokens = list(completion[done : done + len(scores.logits)])
        found = scores.logits[torch.arange(len(tokens)), torch.tensor(tokens, dtype=torch.long)] - scores.totals
        request.tokens += tokens
        request.log_probabilities += found.tolist()
        if request.sampling.top_logprobs:
            request.alternatives += scores.rows(0, len(tokens)).likeliest(request.sampling.top_logprobs)
        if len(request.tokens) == len(completion):
            request.finish = "length"

    def _choose(self, scores: Scores) -> bool:
        """Choose the next token by the scores of one row. Returns whether it is part of the answer."""
        request = self.request
        if request.sampling.takes_the_likeliest and request.constraint is None:
            token = int(scores.best[0])
        else:
            prompt = self.ids[: len(self.ids) - len(request.tokens)]
            allowed = None if request.constraint is None else request.constraint.allowed()
            token = chosen(scores.logits[0].cpu(), request.sampling, prompt, request.tokens, self.generator, allowed)
        if request.first_token_seconds is None:
            request.first_token_seconds = time.perf_counter() - request.submitted
        if not request.take(token, scores.log_probability(token)):
            return False
        if request.sampling.top_logprobs:
            request.alternatives += scores.likeliest(request.sampling.top_logprobs)
        self.ids.append(token)
        if len(self.ids) == self.most:
            request.finish = request.finish or "length"
        return True
