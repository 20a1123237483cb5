"""Knowledge distillation: a smaller student learns a teacher's full distribution at every loss token.

To train on the teacher's answers alone, without its probabilities, write them with `tunesmith answer` and use the
`instruction` objective.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Learn, Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.models.forward import distilled_loss, next_token_losses
from tunesmith.models.load import load_tokenizer
from tunesmith.objectives.objective import Objective


class Distillation(ObjectiveConfig):
    """loss = Σ (1 − λ) T² KL(teacher ‖ student), both softened by T, − λ log p(xₜ | x₍<t₎), over the loss tokens
    (Hinton et al. 2015, section 2; for language models Sanh et al. 2019, section 2)."""

    kind: Literal["distillation"] = "distillation"

    teacher: str
    """A run, an adapter, a model directory or a hub name. It must have the student's vocabulary; it is usually larger
    than the student."""

    temperature: float = Field(default=1.0, gt=0)
    """T: both models' logits are divided by it. Default 1: a language model's probabilities are soft enough."""

    label_weight: float = Field(default=0.0, ge=0, le=1)
    """λ: the share of the loss that comes from the rows' own tokens. Default 0: the teacher was trained on rows like
    these."""

    learn: Learn = "assistant"
    """Which tokens have a loss: every assistant turn, the last one, or the full conversation. In raw text, all do."""

    @property
    def head(self) -> Head:
        return CausalLMHead()

    @property
    def reference_paths(self) -> tuple[str, ...]:
        return (self.teacher,)

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "Distillation":
        teacher = self.teacher if self.teacher == "embedded" else absolute(self.teacher)
        return self.model_copy(update={"teacher": teacher})

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return renderer.render(example, learn=self.learn)

    def check_reference(self, reference: Any, base: Base) -> None:
        """Raises:
        UserError: the teacher has a different vocabulary, or does not generate text.
        """
        if not reference.head.generates_text:
            raise UserError(
                f"objective.teacher: {self.teacher} does not generate text. Use a causal language model instead."
            )
        if reference.tokenizer().get_vocab() != load_tokenizer(base).get_vocab():
            raise UserError(
                f"objective.teacher: {self.teacher} has a different vocabulary from the student, so their "
                "probabilities cannot be compared. Train on the teacher's answers instead: "
                f"tunesmith answer {self.teacher} FILE --output answers.jsonl"
            )

    def build(self, references: Sequence[PreTrainedModel] = ()) -> "DistillationLoss":
        return DistillationLoss(self, references)


class DistillationLoss(Objective):
    """The distance to the teacher's distribution. Evaluation is the next-token loss on the rows' own tokens, so that a
    student compares with other language models; it needs no teacher."""

    def __init__(self, config: Distillation, references: Sequence[PreTrainedModel] = ()) -> None:
        self.config = config
        self.reference_models = tuple(references)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        (teacher,) = self.reference_models
        return distilled_loss(model, teacher, batch, self.config.temperature, self.config.label_weight)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_losses(model, batch)
