"""Next token on raw text: continued pretraining for a domain, or pretraining from nothing."""

from typing import ClassVar, Literal

from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.objectives.next_token import NextToken


class Text(NextToken):
    """loss = −Σ log p(xₜ | x₍<t₎) over all tokens of a document and its end (Radford et al. 2018, eq. 1).

    Documents are never mixed: attention stays inside each, also when many are packed into one batch. Chats are
    rendered through the template and learnt as text.
    """

    kind: Literal["text"] = "text"

    concatenate: bool = False
    """Lay documents end to end into rows of `data.max_length` that look across documents' ends, as many pretraining
    recipes do (Brown et al. 2020, section 2.2). Off: what stands before a document says nothing of it."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "split"

    @property
    def joins_rows(self) -> bool:
        return self.concatenate

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return renderer.render(example, learn="all")
