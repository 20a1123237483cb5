"""What is counted on the way from rows to tokens: nothing is left out without a number and a place."""

from dataclasses import dataclass, field

SHOWN = 5
"""Rows that are named in a message or kept in a report."""


@dataclass
class DataReport:
    """What the data held and what was done with it; goes into the `data` event as it is.

    Attributes:
        form: the rows' form, as detected or named.
        rows: read, malformed ones included.
        malformed: that could not be understood; `malformed_rows` names the first few with reasons.
        unusable: that the chat template cannot show or that would teach nothing; `unusable_rows` names the first few.
        separate_turns: earlier turns that are examples of their own, since the template rewrites them in later ones.
        held_out_rows: examples kept out of training.
        examples: to train on, after splitting and dropping.
        truncated, split, dropped: examples over `data.max_length`, by what was done with them.
        joined: rows that documents laid end to end were cut into.
        replayed, replayed_tokens: rows of `data.replay` among the training examples; `replay_rows` were there.
        unlearnable: pieces of split examples without a learnt token, left out.
        tokens, loss_tokens: in the training examples.
        held_out_tokens, held_out_loss_tokens: in the held-out ones.
        longest: tokens of the longest example before any cut.
        length_histogram: [upper edge in tokens, examples] of the training examples.
        cached: whether the tokens came from the cache.
    """

    format: str = ""
    rows: int = 0
    malformed: int = 0
    malformed_rows: list[str] = field(default_factory=list)
    unusable: int = 0
    unusable_rows: list[str] = field(default_factory=list)
    separate_turns: int = 0
    held_out_rows: int = 0
    examples: int = 0
    truncated: int = 0
    split: int = 0
    dropped: int = 0
    unlearnable: int = 0
    joined: int = 0
    replay_rows: int = 0
    replayed: int = 0
    replayed_tokens: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    held_out_tokens: int = 0
    held_out_loss_tokens: int = 0
    longest: int = 0
    length_histogram: list[tuple[int, int]] = field(default_factory=list)
    cached: bool = False
