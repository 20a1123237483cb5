"""Any number of labels for each text: a probability for each, apart from the others."""

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
from tunesmith.objectives.labels import Weights, check_weights, found, place_of
from tunesmith.objectives.whole_text import NewHead


class MultiLabel(NewHead):
    """loss = mean over labels of −y log σ(z) − (1 − y) log(1 − σ(z)), z = head(h) (Tsoumakas & Katakis 2007, binary
    relevance), with h as in `classification`."""

    kind: Literal["multi_label"] = "multi_label"

    labels: list[str] | None = None
    """The labels' names, in the order of the head's outputs. Default: all that the training rows hold, sorted."""

    class_weights: Weights = None
    """What a label's loss is multiplied by where it holds: by name, those not named by 1; or `best_fit_balanced`, rows without
    it / rows with it, for rare labels. Default: 1, so that probabilities are the rows' own."""

    formats: ClassVar[tuple[str, ...]] = ("multi_label",)
    loss_unit: ClassVar[str] = "nats a label"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels")

    @property
    def ending(self) -> Ending:
        return Ending("classes", tuple(self.labels or ()), "multi_label_classification")

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "MultiLabel":
        """With the labels that the training rows hold, where the recipe names none.

        Raises:
            UserError: they hold none.
        """
        if self.labels is None or self.class_weights == "balanced":
            rows = [each.label for each in read() if isinstance(each.label, tuple)]
            labels, counts = found((name for row in rows for name in row), self.labels, 1, "A classifier")
            weights = self.class_weights
            if weights == "balanced":
                weights = {name: max(1, len(rows) - count) / count for name, count in sorted(counts.items())}
            return self.model_copy(update={"labels": labels, "class_weights": weights}).resolve(read)
        check_weights(self.class_weights, self.labels)
        return self

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        labels = self.labels or []
        names = example.label if isinstance(example.label, tuple) else ()
        places = {place_of(name, labels, example.source, "one of its labels") for name in names}
        return [Rendering(example.text or "", (), targets=tuple(float(n in places) for n in range(len(labels))))]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None
        if isinstance(self.class_weights, dict):
            weight = logits.new_tensor([self.class_weights.get(label, 1.0) for label in self.labels or []])
        losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=weight, reduction="none")
        return losses.mean(-1).sum()

    def plain_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        return functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(-1)
