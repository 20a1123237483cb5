"""A class for each text, learnt from a few rows a class: the body by comparing rows, the head by regression on it.

SetFit (Tunstall et al. 2022) draws pairs of rows and moves their vectors together or apart, then fits a logistic
regression on the vectors. Here every row of a batch is compared with every other at once, which is all the pairs that
the batch holds for the cost of reading each row once (Khosla et al. 2020).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.config.registry import BaseKind, ObjectiveConfig
from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import Ending, Pooling
from tunesmith.errors import UserError
from tunesmith.models.heads import vectors
from tunesmith.objectives.labels import found, place_of

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""C of the logistic regression, of which cross-validation takes the best."""

FOLDS = 4


class FewShot(ObjectiveConfig):
    """loss = −mean over the batch's other rows p of row i's class of log exp(cos(i, p) / τ) / Σ exp(cos(i, a) / τ),
    over all other rows a (Khosla et al. 2020, eq. 2); a row alone of its class is only compared with. The head is a
    logistic regression on the vectors, its strength chosen by cross-validation."""

    kind: Literal["few_shot"] = "few_shot"

    labels: list[str] | None = None
    """The classes' names, in the order of the head's outputs. Default: all that the training rows hold, sorted."""

    temperature: float = Field(default=0.1, gt=0)
    """τ, by which cosines are divided (Khosla et al. 2020, section 4.4: 0.1)."""

    pooling: Pooling = "mean"
    """What of a text's last hidden states its vector is: their mean, the first one, or the last one (for decoders)."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    formats: ClassVar[tuple[str, ...]] = ("classification",)
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")
    rate_share: ClassVar[float] = 0.3  # a sentence encoder's vectors are good; tried on MiniLM at 8 and 64 rows a class
    loss_unit: ClassVar[str] = "nats a text"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "macro_f1", "calibration_error")

    @property
    def ending(self) -> Ending:
        return Ending("vectors", tuple(self.labels or ()), pooling=self.pooling)

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "FewShot":
        """With the labels that the training rows hold, where the recipe names none.

        Raises:
            UserError: they hold fewer than two classes, or one of a single row.
        """
        if self.labels is not None:
            return self
        labels, counts = found((str(each.label) for each in read()), None, 2, "A classifier")
        alone = [label for label, count in counts.items() if count < 2]
        if alone:
            raise UserError(
                f"{len(alone):,} of {len(labels):,} classes have but one row, such as {alone[0]!r}, and rows of a "
                "class are compared with each other. Give two or more of each."
            )
        return self.model_copy(update={"labels": labels})

    def check(self, table: TokenTable) -> None:
        if len({float(table.targets_of(row)[0]) for row in range(len(table))}) < 2:
            raise UserError("Only one class is left among the training rows. Give more rows, or hold fewer out.")

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        place = place_of(str(example.label), self.labels or [], example.source)
        return [Rendering(example.text or "", (), targets=(place,))]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self._losses(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self._losses(model, batch)

    def _losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        own = vectors(model, batch, self.ending)
        if len(own) < 2:
            return own.sum(1) * 0.0
        scores = own @ own.T / self.temperature
        itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
        others = scores.masked_fill(itself, -torch.inf)
        bucket_by_length = (batch.labels == batch.labels.T) & ~itself
        losses = torch.logsumexp(others, 1, keepdim=True) - scores
        return losses.masked_fill(~bucket_by_length, 0.0).sum(1) / bucket_by_length.sum(1).clamp(min=1)

    def finish(self, model: PreTrainedModel, vectors: Callable[[], tuple[Any, Any]]) -> nn.Linear:
        rows, told = vectors()
        return fitted_head(rows, told[:, 0].astype(int), len(self.labels or ()))

    def outputs(self, model: PreTrainedModel, batch: Batch, head: Any = None) -> Tensor:
        own = vectors(model, batch, self.ending)
        return own if head is None else functional.softmax(head(own.cpu()), -1)


def fitted_head(rows: Any, classes: Any, count: int) -> nn.Linear:
    """A logistic regression on vectors, as a layer; its strength by cross-validation where every class has two rows.

    Args:
        rows: (rows, hidden).
        classes: (rows,) numbers below `count`.
        count: of classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    least = min(Counter(classes.tolist()).values())
    best = 1.0
    if least >= 2:
        folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=0)

        def score(strength: float) -> float:
            model = LogisticRegression(C=strength, max_iter=1000)
            return float(cross_val_score(model, rows, classes, cv=folds, scoring="neg_log_loss").mean())

        best = max(STRENGTHS, key=score)
    found = LogisticRegression(C=best, max_iter=1000).fit(rows, classes)
    weight, bias = torch.from_numpy(found.coef_).float(), torch.from_numpy(found.intercept_).float()
    head = nn.Linear(weight.shape[1], count)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)  # a class of which no row is left has no chance
        if len(weight) == 1:  # of two classes, one difference
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        places = torch.from_numpy(found.classes_).long()
        head.weight[places], head.bias[places] = weight, bias
    return head
