"""Multi-label classification: any number of labels per text, each with an independent probability."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.ending import Ending
from tunesmith.models.heads import class_logits
from tunesmith.objectives.labels import Weights, check_weights, count_labels, label_index
from tunesmith.objectives.whole_text import NewHead


class MultiLabel(NewHead):
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
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match_of_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels")

    @property
    def ending(self) -> Ending:
        return Ending("classes", tuple(self.labels or ()), "multi_label_classification")

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

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None
        if isinstance(self.class_weights, dict):
            weight = logits.new_tensor([self.class_weights.get(label, 1.0) for label in self.labels or []])
        losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=weight, reduction="none")
        return losses.mean(-1).sum()

    def unweighted_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        return functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(-1)
