"""Text embedding: one vector per text, close to the vectors of matching texts, for search and similarity."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.objectives.contrastive import Contrastive
from tunesmith.objectives.objective import SumOfLosses


class Embedding(Contrastive):
    """loss = −log exp(cos(a, p) / τ) / Σ exp(cos(a, c) / τ), over all positives and negatives c of the batch (van den
    Oord et al. 2018, eq. 4, with in-batch negatives as in Henderson et al. 2017, section 4.4)."""

    kind: Literal["embedding"] = "embedding"

    temperature: float = Field(default=0.05, gt=0)
    """τ: cosine similarities are divided by it. Default 0.05, usual for sentence encoders (Gao et al. 2021)."""

    query_prefix: str = ""
    """Text to put before every anchor, for a base that was trained with one, such as `query: `."""

    document_prefix: str = ""
    """Text to put before every positive and negative."""

    formats: ClassVar[tuple[str, ...]] = ("pairs",)
    loss_unit: ClassVar[str] = "nats per pair"

    @property
    def head(self) -> EmbeddingHead:
        return EmbeddingHead(pooling=self.pooling)

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        documents = (self.document_prefix + text for text in example.others)
        return [Rendering("", (), targets=(), parts=(self.query_prefix + (example.text or ""), *documents))]

    def build(self, references: Sequence[Any] = ()) -> "InBatchLoss":
        return InBatchLoss(self.head, self.temperature)


class InBatchLoss(SumOfLosses):
    """Cross-entropy of each anchor's own positive among the documents of the batch."""

    def __init__(self, head: EmbeddingHead, temperature: float) -> None:
        self.head, self.temperature = head, temperature

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        anchors, documents, targets = roles(batch)
        embeddings = self.head.vectors(model, batch)
        scores = embeddings[anchors] @ embeddings[documents].T / self.temperature
        positives = _positives(batch, anchors, documents, targets)
        scores = scores.masked_fill(positives & ~functional.one_hot(targets, len(documents)).bool(), -torch.inf)
        return functional.cross_entropy(scores, targets, reduction="none")


def roles(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Split a batch's texts into anchors and documents.

    Returns:
        The indices of the anchors (rows,), the indices of the documents (positives and negatives), and for each row
        the index of its positive among the documents (rows,).
    """
    counts = torch.tensor(batch.documents_per_row, device=batch.input_ids.device)
    anchors = counts.cumsum(0) - counts
    others = torch.ones(batch.documents, dtype=torch.bool, device=counts.device)
    others[anchors] = False
    return anchors, others.nonzero()[:, 0], anchors - torch.arange(len(counts), device=counts.device)


def _positives(batch: Batch, anchors: Tensor, documents: Tensor, targets: Tensor) -> Tensor:
    """(rows, documents) bool: whether a document has the text of the row's positive, or is the positive of a row with
    the same anchor. Such a document must not be a negative for this row."""
    number_of: dict[tuple[int, ...], int] = {}
    texts = torch.split(batch.input_ids[0].cpu(), batch.lengths)[: batch.documents]
    numbers = torch.tensor(
        [number_of.setdefault(tuple(text.tolist()), len(number_of)) for text in texts], device=anchors.device
    )
    positives = numbers[documents[targets]][:, None] == numbers[documents]
    same_anchor = numbers[anchors][:, None] == numbers[anchors]  # (rows, rows)
    positives[:, targets] |= same_anchor
    return positives
