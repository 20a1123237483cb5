"""Text classification: one of several labels per text, from an encoder's first token or a decoder's last."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.sequence_classification import SequenceClassificationHead, class_logits
from tunesmith.objectives.labels import Weights, check_weights, count_labels, label_index, weights_of
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import Objective


class Classification(NewHeadConfig):
    """loss = −log softmax(head(h))[label]. h is the last hidden state of the first token in an encoder (Devlin et al.
    2019, section 4.1), and of the last token in a decoder (Radford et al. 2018, section 3.2)."""

    kind: Literal["classification"] = "classification"

    labels: list[str] | None = None
    """The class names, in the order of the head's outputs. Default: every label in the training rows, sorted."""

    class_weights: Weights = None
    """The factor on each class's loss: a mapping from class name to factor (1 for a class that is missing), or
    `balanced` for rows / (classes · rows of the class), which helps rare classes (King & Zeng 2001). Default: 1 for
    every class, so that the predicted probabilities match the class frequencies of the training rows."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: the target is (1 − ε) onehot + ε / classes (Szegedy et al. 2016, section 7). Default 0: smoothing would make
    the predicted probabilities less confident than the rows are."""

    formats: ClassVar[tuple[str, ...]] = ("classification",)
    loss_unit: ClassVar[str] = "nats per text"

    @property
    def head(self) -> SequenceClassificationHead:
        return SequenceClassificationHead(tuple(self.labels or ()))

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "Classification":
        """Take the labels from the training rows, if the recipe names none, and compute balanced class weights.

        Raises:
            UserError: the training rows have fewer than two labels, or a class weight names an unknown class.
        """
        if self.labels is None or self.class_weights == "balanced":
            labels, counts = count_labels((str(row.label) for row in read()), self.labels, 2, "A classifier")
            weights = self.class_weights
            if weights == "balanced":
                weights = {name: counts.total() / (len(counts) * count) for name, count in sorted(counts.items())}
            return self.model_copy(update={"labels": labels, "class_weights": weights}).resolve(read)
        check_weights(self.class_weights, self.labels)
        return self

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        target = label_index(str(example.label), self.labels or [], example.source)
        return [Rendering(example.text or "", (), targets=(target,))]

    def build(self, references: Sequence[Any] = ()) -> "ClassificationLoss":
        return ClassificationLoss(weights_of(self.class_weights, self.labels), self.label_smoothing)


class ClassificationLoss(Objective):
    """Cross-entropy, with class weights and label smoothing in training."""

    def __init__(self, weights: list[float] | None = None, smoothing: float = 0.0) -> None:
        self.weights, self.smoothing = weights, smoothing

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        return functional.cross_entropy(
            logits, batch.labels[:, 0].long(), weight, reduction="sum", label_smoothing=self.smoothing
        )

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return functional.cross_entropy(class_logits(model, batch).float(), batch.labels[:, 0].long(), reduction="none")
