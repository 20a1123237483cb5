"""Next token on the assistant's answers, each with its end-of-turn; the prompt is read, not learnt."""

from typing import Literal

from tunesmith.data.example import Example
from tunesmith.data.render import Learn, Renderer, Rendering
from tunesmith.errors import UserError
from tunesmith.objectives.next_token import NextToken


class Instruction(NextToken):
    """loss = −Σ log p(xₜ | x₍<t₎) over the learnt tokens (Ouyang et al. 2022, the supervised stage)."""

    kind: Literal["instruction"] = "instruction"

    learn: Learn = "assistant"
    """Whose tokens: every assistant turn, the last one, or the whole conversation. Every turn: no answer is wasted."""

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        if example.messages is None:
            raise UserError(
                f"{example.source}: raw text has no answer to learn from. Set objective: {{kind: text}}, "
                "or name the columns that hold question and answer in data.columns."
            )
        return renderer.render(example, learn=self.learn)
