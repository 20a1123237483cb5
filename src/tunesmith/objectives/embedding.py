"""A vector for each text, near those of texts that belong to it: for search, for telling what is alike."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.config.registry import BaseKind, ObjectiveConfig
from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.ending import Ending, Pooling
from tunesmith.models.heads import vectors


class Embedding(ObjectiveConfig):
    """loss = −log exp(cos(a, p) / τ) / Σ exp(cos(a, c) / τ), over all positives and negatives c of the batch (van den
    Oord et al. 2018, eq. 4, with negatives of the batch as in Henderson et al. 2017, section 4.4)."""

    kind: Literal["embedding"] = "embedding"

    temperature: float = Field(default=0.05, gt=0)
    """τ, by which cosines are divided. 0.05: as sentence encoders are mostly trained (Gao et al. 2021)."""

    pooling: Pooling = "mean"
    """What of a text's last hidden states its vector is: their mean, the first one, or the last one (for decoders)."""

    query_prefix: str = ""
    """Put before every anchor, where a base has learnt with one: `query: `."""

    document_prefix: str = ""
    """Put before every positive and negative."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    formats: ClassVar[tuple[str, ...]] = ("pairs",)
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")
    rate_share: ClassVar[float] = 0.3  # a sentence encoder's vectors are good; tried on MiniLM at 8 and 64 rows a class
    loss_unit: ClassVar[str] = "nats a pair"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("found_first", "found_in_ten", "reciprocal_rank")

    @property
    def ending(self) -> Ending:
        return Ending("vectors", pooling=self.pooling)

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        documents = (self.document_prefix + text for text in example.others)
        return [Rendering("", (), targets=(), parts=(self.query_prefix + (example.text or ""), *documents))]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self._losses(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self._losses(model, batch)

    def _losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        anchors, documents, right = roles(batch)
        found = vectors(model, batch, self.ending)
        scores = found[anchors] @ found[documents].T / self.temperature
        also = _also_right(batch, anchors, documents, right)
        scores = scores.masked_fill(also & ~functional.one_hot(right, len(documents)).bool(), -torch.inf)
        return functional.cross_entropy(scores, right, reduction="none")

    def outputs(self, model: PreTrainedModel, batch: Batch, head: object = None) -> Tensor:
        return vectors(model, batch, self.ending)


def roles(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Which of a batch's documents are anchors (rows,), which are not, and where among these each row's own positive
    stands (rows,)."""
    counts = torch.tensor(batch.documents_per_row, device=batch.input_ids.device)
    anchors = counts.cumsum(0) - counts
    others = torch.ones(batch.documents, dtype=torch.bool, device=counts.device)
    others[anchors] = False
    return anchors, others.nonzero()[:, 0], anchors - torch.arange(len(counts), device=counts.device)


def _also_right(batch: Batch, anchors: Tensor, documents: Tensor, right: Tensor) -> Tensor:
    """(rows, documents) whether a document is the row's own positive again, or the positive of a row that asks the
    same: what is right for one row is not wrong for another."""
    texts: dict[tuple[int, ...], int] = {}
    own = torch.split(batch.input_ids[0].cpu(), batch.lengths)[: batch.documents]
    number = torch.tensor([texts.setdefault(tuple(each.tolist()), len(texts)) for each in own], device=anchors.device)
    same = number[documents[right]][:, None] == number[documents]
    asked = number[anchors][:, None] == number[anchors]  # (rows, rows)
    same[:, right] |= asked
    return same
