"""Next token on the assistant's answers, each with its end-of-turn; the prompt is read, not learnt."""

from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.models.forward import next_token_loss, next_token_losses
from tunesmith.recipe import ObjectiveConfig


class Instruction(ObjectiveConfig):
    """loss = −Σ log p(xₜ | x₍<t₎) over the learnt tokens (Ouyang et al. 2022, the supervised stage)."""

    kind: Literal["instruction"] = "instruction"

    learn: Literal["assistant", "last", "all"] = "assistant"
    """Whose tokens: every assistant turn, the last one, or the whole conversation. Every turn: no answer is wasted."""

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        if example.messages is None:
            raise UserError(
                f"{example.source}: raw text has no answer to learn from. Set objective: {{kind: text}}, "
                "or name the columns that hold question and answer in data.columns."
            )
        return renderer.render(example, learn=self.learn)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_loss(model, batch)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_losses(model, batch)
