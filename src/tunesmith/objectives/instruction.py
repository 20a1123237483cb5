"""Instruction tuning: next-token loss on the assistant's answers and their end-of-turn tokens, not on the prompt."""

from typing import Literal

from tunesmith.data.example import Example
from tunesmith.data.render import Learn, Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.objectives.next_token import NextToken


class Instruction(NextToken):
    """loss = −Σ log p(xₜ | x₍<t₎) over the loss tokens (Ouyang et al. 2022, the supervised stage)."""

    kind: Literal["instruction"] = "instruction"

    learn: Learn = "assistant"
    """Which tokens have a loss: every assistant turn, the last one, or the full conversation. Default: every assistant
    turn, so that no answer is wasted."""

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        if example.messages is None:
            raise UserError(
                f"{example.source}: raw text has no answer to train on. Set objective: {{kind: text}}, "
                "or name the question and answer columns in data.columns."
            )
        return renderer.render(example, learn=self.learn)
