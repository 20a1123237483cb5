"""Next-token loss on raw text: continued pretraining on a domain, or pretraining from scratch."""

from typing import ClassVar, Literal

from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.objectives.next_token import NextToken


class Text(NextToken):
    """loss = −Σ log p(xₜ | x₍<t₎) over all tokens of a document and its end token (Radford et al. 2018, eq. 1).

    Attention stays within each document, also when many are packed into one batch. Chats are rendered through the chat
    template and trained on as text.
    """

    kind: Literal["text"] = "text"

    concatenate: bool = False
    """Concatenate documents into rows of `data.max_length`, with attention across document boundaries, as many
    pretraining recipes do (Brown et al. 2020, section 2.2). Default false: the preceding document carries no
    information about the next one."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "split"

    @property
    def concatenates_rows(self) -> bool:
        return self.concatenate

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return renderer.render(example, learn="all")
