"""A smaller student learns what a teacher would have said: the whole distribution at every learnt token.

The teacher's answers alone, without its probabilities, are learnt as instructions are: `tunesmith answer` writes them.
"""

from typing import Any, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.recipe import Base
from tunesmith.config.registry import ObjectiveConfig
from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Learn, Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.models.attention import use_document_attention
from tunesmith.models.fake_tensors import is_fake
from tunesmith.models.forward import distilled_loss, next_token_losses
from tunesmith.models.fused import use_fused_ops
from tunesmith.models.load import fake_model, load_tokenizer
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.prompts import plain_model


class Distillation(ObjectiveConfig):
    """loss = Σ (1 − λ) T² KL(teacher ‖ student), both softened by T, − λ log p(xₜ | x₍<t₎), over the learnt tokens
    (Hinton et al. 2015, section 2; of language models Sanh et al. 2019, section 2)."""

    kind: Literal["distillation"] = "distillation"

    teacher: str
    """A run, an adapter, a model's directory or a hub name: of the student's vocabulary, and mostly larger."""

    temperature: float = Field(default=1.0, gt=0)
    """T, by which both models' logits are divided. 1: a language model's probabilities are soft as they are."""

    label_share: float = Field(default=0.0, ge=0, le=1)
    """λ: how much of the loss is of the rows' own tokens. 0: the teacher has seen rows like them."""

    learn: Learn = "assistant"
    """Whose tokens: every assistant turn, the last one, or the whole conversation. Of raw texts: all."""

    _teacher: Any = PrivateAttr(default=None)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.teacher,)

    @property
    def reference_models(self) -> tuple[PreTrainedModel, ...]:
        return () if self._teacher is None else (self._teacher,)

    def begin(self, model: PreTrainedModel, base: Base) -> None:
        """Load the teacher beside the student, in its precision.

        Raises:
            UserError: it has another vocabulary, or does not write.
        """
        usable = ModelReference.find(self.teacher)
        if usable.ending.kind != "vocabulary":
            raise UserError(f"objective.teacher: {self.teacher} writes no text. Name a model that does.")
        if usable.tokenizer().get_vocab() != load_tokenizer(base).get_vocab():
            raise UserError(
                f"objective.teacher: {self.teacher} has another vocabulary than the student, and probabilities of "
                "other tokens cannot be compared. Learn its answers: "
                f"tunesmith answer {self.teacher} FILE --output answers.jsonl"
            )
        if is_fake(model):
            teacher = fake_model(usable.base, model.dtype).requires_grad_(False)
        else:
            teacher = usable.model(model.dtype, model.device).requires_grad_(False)
        if use_document_attention(plain_model(teacher)):
            use_fused_ops(plain_model(teacher))
        self._teacher = teacher

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return renderer.render(example, learn=self.learn)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return distilled_loss(model, self._teacher, batch, self.temperature, self.label_share)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Of the rows' own tokens, as everywhere: a student is used as a language model."""
        return next_token_losses(model, batch)
