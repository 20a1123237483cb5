"""A class for each text: one of several labels, on an encoder's first token or a decoder's last."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.models.heads import class_logits
from tunesmith.recipe import BaseKind, ObjectiveConfig


class Classification(ObjectiveConfig):
    """loss = −log softmax(head(h))[label], with h the first token's last hidden state in an encoder (Devlin et al.
    2019, section 4.1), the last token's in a decoder (Radford et al. 2018, section 3.2)."""

    kind: Literal["classification"] = "classification"

    labels: list[str] | None = None
    """The classes' names, in the order of the head's outputs. Default: all that the training rows hold, sorted."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the new head, whatever `train.learning_rate` is. Default: 8 / hidden size, at most 0.02, as
    a head's rate goes with the reciprocal of what it reads (Yang et al. 2022, table 3); tried on MiniLM."""

    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """What each class's loss is multiplied by: by name, those not named by 1; or `balanced`, rows / (classes · rows of
    the class), for rare classes (King & Zeng 2001). Default: all alike, so that probabilities are the rows' own."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: learn (1 − ε) of the class and ε / classes of every other (Szegedy et al. 2016, section 7). 0: probabilities
    are then as sure as the rows are."""

    over_long: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    form: ClassVar[str | None] = "classification"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")
    classes: ClassVar[bool] = True

    def head_learning_rate_at(self, hidden: int) -> float:
        return self.head_learning_rate or min(0.02, 8 / hidden)

    def settled(self, read: Callable[[], Iterable[Example]]) -> "Classification":
        """With the labels that the training rows hold, where the recipe names none.

        Raises:
            UserError: they hold fewer than two.
        """
        if self.labels is not None and self.class_weights != "balanced":
            return self._checked()
        counts = Counter(example.label for example in read() if example.label is not None)
        labels = self.labels or sorted(counts)
        if len(labels) < 2:
            found = f"only {labels[0]!r}" if labels else "none"
            raise UserError(f"A classifier needs two classes or more, and the training rows hold {found}.")
        weights = self.class_weights
        if weights == "balanced":
            rows = sum(counts.values())
            weights = {label: rows / (len(counts) * count) for label, count in sorted(counts.items())}
        return self.model_copy(update={"labels": labels, "class_weights": weights})._checked()

    def _checked(self) -> "Classification":
        named = self.class_weights if isinstance(self.class_weights, dict) else {}
        unknown = next((name for name in named if name not in (self.labels or [])), None)
        if unknown is not None:
            raise UserError(f"objective.class_weights: {unknown!r} is no class. Known: {', '.join(self.labels or [])}.")
        return self

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        labels = self.labels or []
        if example.label not in labels:
            raise UserError(
                f"{example.source}: its label {example.label!r} is none of objective.labels ({', '.join(labels[:8])}"
                f"{' …' if len(labels) > 8 else ''}). Mend the row, add the label, or leave labels out to take all "
                "that the training rows hold."
            )
        return [Rendering(example.text or "", (), label=labels.index(example.label))]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch).float()
        weight = None
        if isinstance(self.class_weights, dict):
            weight = logits.new_tensor([self.class_weights.get(label, 1.0) for label in self.labels or []])
        return functional.cross_entropy(
            logits, batch.labels, weight, reduction="sum", label_smoothing=self.label_smoothing
        )

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return functional.cross_entropy(class_logits(model, batch).float(), batch.labels, reduction="none")
