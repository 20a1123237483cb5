"""Sequence to sequence: an encoder reads the question, a decoder learns to generate the answer (T5, BART)."""

from typing import ClassVar, Literal

from tunesmith.config.head import Head
from tunesmith.config.objective import BaseKind
from tunesmith.data.example import Example
from tunesmith.data.reasoning import reasoning_of, with_reasoning
from tunesmith.data.render import Renderer, Rendering, source_text
from tunesmith.errors import UserError
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.objectives.next_token import NextToken


class Seq2Seq(NextToken):
    """loss = −Σ log p(yₜ | y₍<t₎, x) over the answer's tokens and its end token, given the text x (Raffel et al. 2020,
    section 2.1; Lewis et al. 2020, section 3.3)."""

    kind: Literal["seq2seq"] = "seq2seq"

    bases: ClassVar[tuple[BaseKind, ...]] = ("encoder-decoder",)

    @property
    def head(self) -> Head:
        return Seq2SeqLMHead()

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        if example.messages is None:
            raise UserError(
                f"{example.source}: raw text has no answer to train on. Name the question and answer columns in "
                "data.columns."
            )
        *prompt, answer = example.messages
        reasoning, content = reasoning_of(answer)
        target = with_reasoning(content, reasoning) if answer.get("reasoning_content") else str(answer["content"])
        return [Rendering(target, ((0, len(target)),), source=source_text(prompt))]
