"""A reward model of grades: how an answer is graded on one attribute or several, such as helpfulness."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from tunesmith.config.objective import BaseKind
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.heads.reward import GradedRewardHead, label_of
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import SumOfLosses


class GradedReward(NewHeadConfig):
    """loss = mean over attributes and grades g of −y log σ(h) − (1 − y) log σ(−h), y = 1 where the answer's grade is
    above g: ordinal regression by binary outputs (Frank & Hall 2001), an output for each attribute and grade. Several
    attributes make several rewards (as in HelpSteer: Wang et al. 2023)."""

    kind: Literal["graded_reward"] = "graded_reward"

    attributes: list[str] | None = None
    """The columns with grades, which are whole numbers. Default: every such column of the training rows."""

    lowest: int | None = None
    """The lowest grade. Default: the lowest one in the training rows."""

    highest: int | None = None
    """The highest grade. Default: the highest one in the training rows."""

    formats: ClassVar[tuple[str, ...]] = ("grades",)
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"
    loss_unit: ClassVar[str] = "nats per grade"

    @property
    def grades(self) -> range:
        """The grades that an answer can be above."""
        return range(self.lowest or 0, self.highest or 0)

    @property
    def head(self) -> GradedRewardHead:
        return GradedRewardHead(tuple(label_of(name, grade) for name in self.attributes or () for grade in self.grades))

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "GradedReward":
        """Take attributes and grades from the training rows, unless the recipe names them.

        Raises:
            UserError: no column has whole numbers, or all grades are equal.
        """
        if self.attributes is not None and self.lowest is not None and self.highest is not None:
            return self
        found: dict[str, set[int]] = {}
        bad: set[str] = set()
        for example in read():
            for name, value in example.columns.items():
                if name in (self.attributes or (name,)):
                    grade = _grade(value)
                    bad |= set() if grade is not None else {name}
                    found.setdefault(name, set()).update(() if grade is None else (grade,))
        names = self.attributes or [name for name in found if name not in bad]
        every = {grade for name in names for grade in found.get(name, ())}
        if not names or len(every) < 2:
            raise UserError(
                "objective: graded_reward needs columns with grades, which are whole numbers such as 1 to 5, and not "
                f"all equal; the rows have {', '.join(found) or 'no columns beside prompt and answer'}. Name them in "
                "objective.attributes."
            )
        lowest = min(every) if self.lowest is None else self.lowest
        highest = max(every) if self.highest is None else self.highest
        return self.model_copy(update={"attributes": list(names), "lowest": lowest, "highest": highest})

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        targets: list[float] = []
        for name in self.attributes or ():
            grade = _grade(example.columns.get(name))
            if grade is None or not self.grades.start <= grade <= self.grades.stop:
                raise UnusableError(
                    f"its {name} is {example.columns.get(name)!r}, not a whole number from {self.grades.start} to "
                    f"{self.grades.stop}"
                )
            targets += [float(grade > other) for other in self.grades]
        return [renderer.steps(example, tuple(targets))]

    def build(self, references: Sequence[Any] = ()) -> "GradedRewardLoss":
        return GradedRewardLoss(len(self.attributes or ()))


class GradedRewardLoss(SumOfLosses):
    """Binary cross-entropy, the mean over attributes and grades. Evaluation also reports how far the expected grade is
    from the row's, as a mean over attributes."""

    def __init__(self, attributes: int) -> None:
        self.attributes = attributes

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype), reduction="none").mean(-1)

    @torch.no_grad()
    def figures(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        above = torch.sigmoid(class_logits(model, batch).float())
        apart = (above - batch.labels).view(len(above), self.attributes, -1).sum(-1)
        return {"loss": self.each_loss(model, batch), "grade_error": apart.abs().mean(-1)}


def _grade(value: Any) -> int | None:
    """A whole number, also as text (as in CSV files); None if the value is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.5
    except ValueError:
        return None
    return int(number) if number.is_integer() else None
