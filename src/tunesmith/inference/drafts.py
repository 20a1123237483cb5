"""Drafts for speculative decoding (Leviathan et al. 2023): guesses of a sequence's next tokens.

The engine computes the guesses and the tokens before them in one step, chooses each token as it would without them, and
continues as long as the guess was that token. So an answer is the same whatever was guessed; only its time is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LOOKUP = "lookup"
"""Asks for drafts by prompt look-up."""

NGRAMS = (4, 3, 2)
"""How many of a text's last tokens are looked up, the longest first."""

MEMORY = 0.9
"""What the check of a draft counts after each further step. So drafts are tried again some steps after failures."""


class Drafter(Protocol):
    """A source of drafts.

    Attributes:
        cost: the time of a drafted token, as a share of a step of the model that checks it.
    """

    @property
    def cost(self) -> float: ...

    def drafts(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Sequence[int]]:
        """What may follow each text.

        Args:
            texts: token ids, from the beginning of each prompt.
            counts: the most tokens to draft for each text.

        Returns:
            A draft for each text, which may be shorter, or empty.
        """
        ...


class PromptLookup:
    """Drafts what followed the text's last tokens where they occurred before, in its prompt or answer (Saxena 2023)."""

    cost = 0.0

    def drafts(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Sequence[int]]:
        """As `Drafter.drafts`."""
        return [looked_up(text, count) for text, count in zip(texts, counts, strict=True)]


def looked_up(text: Sequence[int], count: int) -> Sequence[int]:
    """Up to `count` tokens after the first occurrence of the text's last tokens; none if they did not occur before."""
    for length in NGRAMS:
        last, at = text[-length:], 0
        while (at := text.index(last[0], at)) < len(text) - length:
            if text[at : at + length] == last:
                return text[at + length : at + length + count]
            at += 1
    return []


@dataclass
class Acceptance:
    """How often the drafted tokens of a sequence were right, of late.

    Attributes:
        right: tokens that were right, each weighted by `MEMORY` to the power of the steps since; it starts with one.
        checked: tokens that were checked, likewise; it starts with two.
    """

    right: float = 1.0
    checked: float = 2.0

    def length(self, most: int, cost: float) -> int:
        """How many tokens to draft: what makes the time per token shortest (Leviathan et al. 2023, theorem 3.8).

        Args:
            most: the most that there is room for.
            cost: of drafting and checking one token, as a share of a step without drafts.
        """
        rate = self.right / self.checked
        return max(range(most + 1), key=lambda count: (1 - rate ** (count + 1)) / (1 - rate) / (1 + cost * count))

    def add(self, drafted: int, accepted: int) -> None:
        """Take account of a step; tokens after the first wrong one were not checked."""
        self.right = 1 + MEMORY * (self.right - 1) + accepted
        self.checked = 2 + MEMORY * (self.checked - 2) + min(accepted + 1, drafted)
