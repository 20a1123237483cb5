"""Knowledge distillation: a smaller student learns a teacher's full distribution at every loss token.

To train on the teacher's answers alone, without its probabilities, write them with `tunesmith answer` and use the
`instruction` objective.
"""

from typing import Any, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.base import Base
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

    _teacher: Any = PrivateAttr(default=None)

    @property
    def reference_paths(self) -> tuple[str, ...]:
        return (self.teacher,)

    @property
    def reference_models(self) -> tuple[PreTrainedModel, ...]:
        return () if self._teacher is None else (self._teacher,)

    def set_up(self, model: PreTrainedModel, base: Base) -> None:
        """Load the teacher on the student's device, in the student's precision.

        Raises:
            UserError: the teacher has a different vocabulary, or does not generate text.
        """
        reference = ModelReference.find(self.teacher)
        if reference.ending.kind != "vocabulary":
            raise UserError(
                f"objective.teacher: {self.teacher} does not generate text. Use a causal language model instead."
            )
        if reference.tokenizer().get_vocab() != load_tokenizer(base).get_vocab():
            raise UserError(
                f"objective.teacher: {self.teacher} has a different vocabulary from the student, so their "
                "probabilities cannot be compared. Train on the teacher's answers instead: "
                f"tunesmith answer {self.teacher} FILE --output answers.jsonl"
            )
        if is_fake(model):
            teacher = fake_model(reference.base, model.dtype).requires_grad_(False)
        else:
            teacher = reference.model(model.dtype, model.device).requires_grad_(False)
        if use_document_attention(plain_model(teacher)):
            use_fused_ops(plain_model(teacher))
        self._teacher = teacher

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return renderer.render(example, learn=self.learn)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return distilled_loss(model, self._teacher, batch, self.temperature, self.label_weight)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The next-token loss on the rows' own tokens, so that a student compares with other language models."""
        return next_token_losses(model, batch)
