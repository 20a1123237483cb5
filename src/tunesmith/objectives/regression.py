"""Text regression: one value per text, such as a rating, a similarity or a price."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.heads.new_head import last_linear
from tunesmith.heads.sequence_classification import RegressionHead, class_logits
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import SumOfLosses

FAR = 10.0
"""How many standard deviations the mean may be from 0: beyond this, a head without a bias does not reach it."""


class Regression(NewHeadConfig):
    """loss = ((head(h) − y) / s)², with s the standard deviation of the training rows' values and h as in
    `classification`.

    The head starts at the values' mean and is scaled by their standard deviation, with a learning rate to match. AdamW
    then behaves as on values of mean 0 and standard deviation 1, and the model predicts values in the rows' own unit. A
    decoder's head has no bias and starts at 0.
    """

    kind: Literal["regression"] = "regression"

    mean: float | None = None
    """The head's initial output. Default: the mean of the training rows' values."""

    std: float | None = Field(default=None, gt=0)
    """The scale of the values. Default: their standard deviation in the training rows."""

    formats: ClassVar[tuple[str, ...]] = ("regression",)
    loss_unit: ClassVar[str] = "squared standard deviations per text"

    @property
    def head(self) -> RegressionHead:
        return RegressionHead()

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "Regression":
        """Compute the mean and standard deviation of the training rows, unless the recipe sets them.

        Raises:
            UserError: all rows have the same value.
        """
        if self.mean is not None and self.std is not None:
            return self
        values = [example.label for example in read() if isinstance(example.label, float)]
        if len(set(values)) < 2:
            raise UserError(
                "Regression needs rows with different values, but the training rows have one value or none."
            )
        mean, std = statistics.fmean(values), statistics.pstdev(values)
        return self.model_copy(update={"mean": mean if self.mean is None else self.mean, "std": self.std or std})

    def initialize_head(self, model: PreTrainedModel) -> None:
        head = last_linear(model)
        if head.bias is None and abs(self.mean or 0.0) > FAR * (self.std or 1.0):
            raise UserError(
                f"objective: regression: the values have mean {self.mean:,.4g} and standard deviation {self.std:,.3g}, "
                f"but {type(model).__name__}'s head has no bias, so it cannot start there. Subtract {self.mean:,.4g} "
                "from the scores, or use an encoder."
            )
        with torch.no_grad():
            head.weight.mul_(self.std or 1.0)
            if head.bias is not None:
                head.bias.fill_(self.mean or 0.0)

    @property
    def output_scale(self) -> float:
        return self.std or 1.0

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        assert isinstance(example.label, float)
        return [Rendering(example.text or "", (), targets=(example.label,))]

    def build(self, references: Sequence[Any] = ()) -> "RegressionLoss":
        return RegressionLoss(self.std or 1.0)


class RegressionLoss(SumOfLosses):
    """Squared errors, in units of the values' variance."""

    def __init__(self, std: float) -> None:
        self.std = std

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return ((class_logits(model, batch).float() - batch.labels) / self.std).square()[:, 0]
