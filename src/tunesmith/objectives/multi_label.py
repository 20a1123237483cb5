"""Multi-label classification: any number of labels per text, each with an independent probability."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.sequence_classification import MultiLabelHead, class_logits
from tunesmith.objectives.labels import Weights, check_weights, count_labels, label_index, weights_of
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import Objective


class MultiLabel(NewHeadConfig):
    """loss = mean over labels of −y log σ(z) − (1 − y) log(1 − σ(z)), z = head(h) (Tsoumakas & Katakis 2007, binary
    relevance), with h as in `classification`."""

    kind: Literal["multi_label"] = "multi_label"

    labels: list[str] | None = None
    """The label names, in the order of the head's outputs. Default: every label in the training rows, sorted."""

    class_weights: Weights = None
    """The factor on a label's loss in rows that have it: a mapping from label name to factor (1 for a label that is
    missing), or `balanced` for rows without the label / rows with it, which helps rare labels. Default: 1, so that the
    predicted probabilities match the label frequencies of the training rows."""

    formats: ClassVar[tuple[str, ...]] = ("multi_label",)
    loss_unit: ClassVar[str] = "nats per label"

    @property
    def head(self) -> MultiLabelHead:
        return MultiLabelHead(tuple(self.labels or ()))

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "MultiLabel":
        """Take the labels from the training rows, if the recipe names none, and compute balanced class weights.

        Raises:
            UserError: the training rows have no label, or a class weight names an unknown label.
        """
        if self.labels is None or self.class_weights == "balanced":
            rows = [example.label for example in read() if isinstance(example.label, tuple)]
            labels, counts = count_labels((name for row in rows for name in row), self.labels, 1, "A classifier")
            weights = self.class_weights
            if weights == "balanced":
                weights = {name: max(1, len(rows) - count) / count for name, count in sorted(counts.items())}
            return self.model_copy(update={"labels": labels, "class_weights": weights}).resolve(read)
        check_weights(self.class_weights, self.labels)
        return self

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        labels = self.labels or []
        names = example.label if isinstance(example.label, tuple) else ()
        present = {label_index(name, labels, example.source, "one of its labels") for name in names}
        return [Rendering(example.text or "", (), targets=tuple(float(n in present) for n in range(len(labels))))]

    def build(self, references: Sequence[Any] = ()) -> "MultiLabelLoss":
        return MultiLabelLoss(weights_of(self.class_weights, self.labels))


class MultiLabelLoss(Objective):
    """Binary cross-entropy, the mean over labels, with class weights in training."""

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=weight, reduction="none")
        return losses.mean(-1).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        return functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(-1)
