"""Counts of the data pipeline, from rows to tokens: every row that is left out is counted and named."""

from dataclasses import dataclass, field

SHOWN = 5
"""Rows to name in a message or keep in a report."""


@dataclass
class DataReport:
    """What was in the data and what was done with it. The `data` event has these fields.

    Attributes:
        format: the row format, detected or set in the recipe.
        rows: rows read, including malformed ones.
        malformed: rows that could not be parsed; `malformed_rows` names the first few with reasons.
        unusable: rows that the chat template cannot render or that would teach nothing; `unusable_rows` names the
            first few.
        separate_turns: earlier turns that became examples of their own, because the template rewrites them once a later
            turn follows.
        held_out_rows: examples kept out of training.
        examples: training examples, after splitting and dropping.
        truncated, split, dropped: examples over `data.max_length`, by what was done with them.
        joined: rows of `data.max_length` tokens that concatenated documents were cut into.
        replayed, replayed_tokens: rows of `data.replay` among the training examples, out of `replay_rows`.
        unlearnable: pieces of split examples without a loss token, left out.
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
