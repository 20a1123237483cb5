"""Rows as the model will read them, token by token, with the loss mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.data.check import find_problem
from tunesmith.data.example import Malformed
from tunesmith.data.examples import every_training_row
from tunesmith.data.prepare import resolve
from tunesmith.data.render import Renderer, Rendering, Tokenized
from tunesmith.data.rendered import renders
from tunesmith.data.template import UnusableError


@dataclass(frozen=True, slots=True)
class Piece:
    """A token's text, and whether it has loss. Tokens that hold only part of a character are joined."""

    text: str
    has_loss: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """One rendering of a row.

    Attributes:
        source: the row.
        pieces: its tokens, in order; concatenated, they are the text.
        tokens: number of tokens.
        loss_tokens: number of tokens with loss.
        fault: why it cannot be trained on; None if it can.
        is_malformed: whether it could not be read as a row of its format; it then has no tokens.
    """

    source: str
    pieces: tuple[Piece, ...]
    tokens: int
    loss_tokens: int
    fault: str | None
    is_malformed: bool = False


def show(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: int, start: int = 1) -> Iterator[Shown]:
    """Rows of the recipe's training data, rendered and tokenized.

    Args:
        recipe: names the data.
        tokenizer: of the recipe's base.
        rows: how many; malformed ones count.
        start: the first, from 1.

    Returns:
        Each rendering of each row.

    Raises:
        UserError: the data cannot be read.
    """
    recipe = resolve(recipe)
    renderer, objective = Renderer(tokenizer), renders(recipe)
    for example in islice(every_training_row(recipe.data, recipe.objective.formats), start - 1, start - 1 + rows):
        if isinstance(example, Malformed):
            yield Shown(str(example.source), (), 0, 0, example.reason, is_malformed=True)
            continue
        try:
            renderings = objective.render(renderer, example)
        except UnusableError as error:
            yield Shown(str(example.source), (), 0, 0, str(error))
            continue
        texts = [text for rendering in renderings for text in rendering.completions or (rendering,)]
        names = _names(renderings, str(example.source))
        for name, rendering, tokenized in zip(names, texts, renderer.tokenize_many(texts), strict=True):
            ids, loss_mask = tokenized
            reason = find_problem(renderer, rendering, tokenized)
            pieces = _pieces(tokenizer, tokenized)
            if rendering.targets and not rendering.loss_spans:  # the loss of the last token is the label of the text
                pieces = (
                    *_pieces(tokenizer, (ids, loss_mask & False)),
                    Piece(f" {_label_text(example.label)}", has_loss=True),
                )
            yield Shown(name, pieces, len(ids), int(loss_mask.sum()), reason)


def _names(renderings: Sequence[Rendering], source: str) -> list[str]:
    """What the texts are called: by their row, and completions by their number and score too."""
    return [
        f"{source}, completion {number} (score {rendering.scores[number - 1]:g})" if rendering.completions else source
        for rendering in renderings
        for number in range(1, max(1, len(rendering.completions)) + 1)
    ]


def _label_text(label: object) -> str:
    return (", ".join(label) or "(none)") if isinstance(label, tuple) else str(label)


def _pieces(tokenizer: PreTrainedTokenizerBase, tokenized: Tokenized) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    waiting: list[int] = []
    for token, loss_mask in zip(*tokenized, strict=True):
        waiting.append(int(token))
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if "\ufffd" not in text or len(waiting) == 4:  # UTF-8 has at most four bytes a character
            pieces.append(Piece(text, bool(loss_mask)))
            waiting = []
    if waiting:
        pieces.append(Piece(tokenizer.decode(waiting), bool(tokenized[1][-1])))
    return tuple(pieces)
