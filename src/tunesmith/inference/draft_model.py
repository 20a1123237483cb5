"""Drafts by a smaller model with the same tokenizer."""

from collections.abc import Sequence

from tunesmith.inference.engine import Engine
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.ops.paged_attention import PAGE


class DraftModel:
    """Drafts greedily with a model in an engine of its own. Its cache knows how each text begins; only the text's last
    page, which is not full, and the draft are computed.

    Args:
        engine: with the model.
        adapter: the name of the model's adapter in the engine, if it has one.
        cost: as in `Drafter`.
    """

    def __init__(self, engine: Engine, adapter: str | None, cost: float) -> None:
        self._engine, self._adapter, self.cost = engine, adapter, cost

    def drafts(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Sequence[int]]:
        """As `Drafter.drafts`. The draft of a text that the model has no room for is empty."""
        requests = [
            Request(text, Sampling(max_new_tokens=count), adapter=self._adapter)
            for text, count in zip(texts, counts, strict=True)
        ]
        self._engine.run([request for request in requests if self._can_read(request)])
        return [request.tokens for request in requests]

    def _can_read(self, request: Request) -> bool:
        engine = self._engine
        length = engine.adapters.get(self._adapter).virtual.count + len(request.prompt)
        has_room = engine.room is None or length < engine.room
        fits = length + request.sampling.max_new_tokens <= engine.pages.total * PAGE
        return has_room and fits and max(request.prompt) < engine.model.vocabulary
