"""Token classification: one tag per word, such as named entities or parts of speech."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.config.objective import BaseKind
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.token_classification import TokenClassificationHead, tag_logits
from tunesmith.objectives.labels import count_labels, label_index
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import SumOfLosses


class TokenClassification(NewHeadConfig):
    """loss = −Σ log softmax(head(h))[tag] over words, where h is the last hidden state of a word's first token (Devlin
    et al. 2019, section 5.3)."""

    kind: Literal["token_classification"] = "token_classification"

    labels: list[str] | None = None
    """The tag names, in the order of the head's outputs: for entities `O`, `B-…`, `I-…` (Ramshaw & Marcus 1995).
    Default: every tag in the training rows, sorted."""

    formats: ClassVar[tuple[str, ...]] = ("words", "entities")
    bases: ClassVar[tuple[BaseKind, ...]] = ("encoder",)
    loss_unit: ClassVar[str] = "nats per word"

    @property
    def head(self) -> TokenClassificationHead:
        return TokenClassificationHead(tuple(self.labels or ()))

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "TokenClassification":
        """Take the tags from the training rows, if the recipe names none.

        Raises:
            UserError: the training rows have fewer than two tags.
        """
        if self.labels is not None:
            return self
        tags = (tag for example in read() for *_, tag in example.spans or ())
        labels, _ = count_labels(tags, None, 2, "A tagger")
        return self.model_copy(update={"labels": labels})

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        spans = example.spans or ()
        tags = tuple(float(label_index(tag, self.labels or [], example.source, "a tag")) for *_, tag in spans)
        return [Rendering(example.text or "", tuple((start, end) for start, end, _ in spans), targets=tags)]

    def build(self, references: Sequence[Any] = ()) -> "TokenClassificationLoss":
        return TokenClassificationLoss()


class TokenClassificationLoss(SumOfLosses):
    """Cross-entropy at each word."""

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return functional.cross_entropy(tag_logits(model, batch).float(), batch.labels[:, 0].long(), reduction="none")
