"""A class for each text: one of several labels, on an encoder's first token or a decoder's last."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from pydantic import Field
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


class Classification(NewHead):
    """loss = −log softmax(head(h))[label], with h the first token's last hidden state in an encoder (Devlin et al.
    2019, section 4.1), the last token's in a decoder (Radford et al. 2018, section 3.2)."""

    kind: Literal["classification"] = "classification"

    labels: list[str] | None = None
    """The classes' names, in the order of the head's outputs. Default: all that the training rows hold, sorted."""

    class_weights: Weights = None
    """What each class's loss is multiplied by: by name, those not named by 1; or `best_fit_balanced`, rows / (classes · rows of
    the class), for rare classes (King & Zeng 2001). Default: all alike, so that probabilities are the rows' own."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: learn (1 − ε) of the class and ε / classes of every other (Szegedy et al. 2016, section 7). 0: probabilities
    are then as sure as the rows are."""

    formats: ClassVar[tuple[str, ...]] = ("classification",)
    loss_unit: ClassVar[str] = "nats a text"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "macro_f1", "calibration_error")

    @property
    def ending(self) -> Ending:
        return Ending("classes", tuple(self.labels or ()))

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "Classification":
        """With the labels that the training rows hold, where the recipe names none.

        Raises:
            UserError: they hold fewer than two.
        """
        if self.labels is None or self.class_weights == "balanced":
            labels, counts = found((str(each.label) for each in read()), self.labels, 2, "A classifier")
            weights = self.class_weights
            if weights == "balanced":
                weights = {name: counts.total() / (len(counts) * count) for name, count in sorted(counts.items())}
            return self.model_copy(update={"labels": labels, "class_weights": weights}).resolve(read)
        check_weights(self.class_weights, self.labels)
        return self

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        place = place_of(str(example.label), self.labels or [], example.source)
        return [Rendering(example.text or "", (), targets=(place,))]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None
        if isinstance(self.class_weights, dict):
            weight = logits.new_tensor([self.class_weights.get(label, 1.0) for label in self.labels or []])
        return functional.cross_entropy(
            logits, batch.labels[:, 0].long(), weight, reduction="sum", label_smoothing=self.label_smoothing
        )

    def plain_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return functional.cross_entropy(class_logits(model, batch).float(), batch.labels[:, 0].long(), reduction="none")
