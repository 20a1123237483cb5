"""Few-shot text classification: a contrastive loss tunes the body, and a logistic regression becomes the head.

SetFit (Tunstall et al. 2022) samples pairs of rows and moves their vectors together or apart, then fits a logistic
regression on the vectors. Here every row of a batch is compared with every other row of it: all pairs of the batch, for
the cost of encoding each row once (Khosla et al. 2020).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.embedding import EmbeddingClassifierHead
from tunesmith.objectives.contrastive import Contrastive
from tunesmith.objectives.labels import count_labels, label_index
from tunesmith.objectives.objective import SumOfLosses

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Values of the logistic regression's C. Cross-validation chooses the best."""

FOLDS = 4


class FewShot(Contrastive):
    """loss = −mean over the batch's other rows p of row i's class of log exp(cos(i, p) / τ) / Σ exp(cos(i, a) / τ),
    over all other rows a (Khosla et al. 2020, eq. 2). A row that is alone in its class has no loss of its own. The head
    is a logistic regression on the vectors; cross-validation chooses its C."""

    kind: Literal["few_shot"] = "few_shot"

    labels: list[str] | None = None
    """The class names, in the order of the head's outputs. Default: every label in the training rows, sorted."""

    temperature: float = Field(default=0.1, gt=0)
    """τ: cosine similarities are divided by it (Khosla et al. 2020, section 4.4: 0.1)."""

    formats: ClassVar[tuple[str, ...]] = ("classification",)
    loss_unit: ClassVar[str] = "nats per text"

    @property
    def head(self) -> EmbeddingClassifierHead:
        return EmbeddingClassifierHead(tuple(self.labels or ()), pooling=self.pooling)

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "FewShot":
        """Take the labels from the training rows, if the recipe names none.

        Raises:
            UserError: the training rows have fewer than two classes, or a class with a single row.
        """
        if self.labels is not None:
            return self
        labels, counts = count_labels((str(row.label) for row in read()), None, 2, "A classifier")
        single = [label for label, count in counts.items() if count < 2]
        if single:
            raise UserError(
                f"{len(single):,} of {len(labels):,} classes have only one row, such as {single[0]!r}. Few-shot "
                "training compares rows of the same class. Add rows, so that every class has two or more."
            )
        return self.model_copy(update={"labels": labels})

    def check(self, table: TokenTable) -> None:
        if len({float(table.targets_of(row)[0]) for row in range(len(table))}) < 2:
            raise UserError("The training rows contain only one class. Add rows, or hold out fewer.")

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        target = label_index(str(example.label), self.labels or [], example.source)
        return [Rendering(example.text or "", (), targets=(target,))]

    def build(self, references: Sequence[Any] = ()) -> "SameClassLoss":
        return SameClassLoss(self.head, self.temperature)


class SameClassLoss(SumOfLosses):
    """Cross-entropy of each row's class among the other rows of the batch."""

    def __init__(self, head: EmbeddingClassifierHead, temperature: float) -> None:
        self.head, self.temperature = head, temperature

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        embeddings = self.head.vectors(model, batch)
        if len(embeddings) < 2:
            return embeddings.sum(1) * 0.0
        scores = embeddings @ embeddings.T / self.temperature
        itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
        others = scores.masked_fill(itself, -torch.inf)
        same_class = (batch.labels == batch.labels.T) & ~itself
        losses = torch.logsumexp(others, 1, keepdim=True) - scores
        return losses.masked_fill(~same_class, 0.0).sum(1) / same_class.sum(1).clamp(min=1)

    def fit_classifier(self, vectors: Callable[[], tuple[NDArray[Any], NDArray[Any]]]) -> nn.Linear:
        embeddings, targets = vectors()
        return fitted_classifier(embeddings, targets[:, 0].astype(int), len(self.head.labels))


def fitted_classifier(embeddings: Any, classes: Any, count: int) -> nn.Linear:
    """Fit a logistic regression on vectors and return it as a linear layer.

    Cross-validation chooses C from `STRENGTHS` if every class has two rows or more; otherwise C is 1.

    Args:
        embeddings: (rows, hidden).
        classes: (rows,) integers in [0, count).
        count: the number of classes.

    Returns:
        A layer from hidden to count.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    fewest_rows = min(Counter(classes.tolist()).values())
    best = 1.0
    if fewest_rows >= 2:
        folds = StratifiedKFold(min(FOLDS, fewest_rows), shuffle=True, random_state=0)

        def score(strength: float) -> float:
            model = LogisticRegression(C=strength, max_iter=1000)
            return float(cross_val_score(model, embeddings, classes, cv=folds, scoring="neg_log_loss").mean())

        best = max(STRENGTHS, key=score)
    fitted = LogisticRegression(C=best, max_iter=1000).fit(embeddings, classes)
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    classifier = nn.Linear(weight.shape[1], count)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.fill_(-1e4)  # probability 0 for a class without training rows
        if len(weight) == 1:  # with two classes, scikit-learn fits one difference
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        indices = torch.from_numpy(fitted.classes_).long()
        classifier.weight[indices], classifier.bias[indices] = weight, bias
    return classifier
