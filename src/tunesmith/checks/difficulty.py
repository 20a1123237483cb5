"""Instruction-following difficulty: how little a prompt helps a model with its answer.

    IFD(prompt, answer) = L(answer | prompt) / L(answer)        Li et al. 2024, "From Quantity to Quality", eq. 4

L is the mean loss of the answer's tokens, in nats: of the same tokens both times, after the prompt as the model's chat
template writes it, and after nothing but the token that begins a document. The token that ends the turn is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.inference.model import load
from tunesmith.inference.model_reference import fingerprint_of
from tunesmith.inference.result_cache import ResultCache, digest_of
from tunesmith.inference.score import SOURCE
from tunesmith.models.forward import evaluation_batches, next_token_losses
from tunesmith.models.load import config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 4096
"""Tokens that the model reads at once."""

ROWS = 64
"""Rows whose losses are kept, and reported as progress, at once."""

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Answer:
    """A row's last answer as tokens.

    Attributes:
        prompt: (n,) everything before it, as the chat template writes it.
        ids: (m,) its own, without what ends the turn; at least one.
    """

    prompt: Ids
    ids: Ids


class AnswerLosses:
    """A model's losses on answers, packed as in training. What is known is kept in the user's cache, by content.

    Args:
        name: of a model that writes text: a run, an adapter, a directory, a short or a hub name.

    Raises:
        UserError: there is no such model, or it writes no text, or is an encoder–decoder.
    """

    def __init__(self, name: str) -> None:
        self._opened = load(name)
        self._opened.require("generate")
        config = config_of(self._opened.reference.base)
        if config.is_encoder_decoder:
            raise UserError(f"{name} is an encoder–decoder: it cannot read an answer without a prompt. Name a decoder.")
        self._most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
        self._cache = ResultCache(digest_of([fingerprint_of(name), str(self._opened.dtype)]), "losses of answers")

    def answers(self, examples: Sequence[Example]) -> list[Answer | None]:
        """The last answers of chats as tokens; None for a row that has no prompt and answer, that the template cannot
        render, or that is longer than the model's context.

        Args:
            examples: of any format; of answers that are compared, the best one is read.
        """
        return [self._answer(example) for example in examples]

    def after(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> NDArray[np.float64]:
        """The mean loss of each answer after a prompt (answers,), in nats per token.

        Args:
            prompts: of each, at least one token.
            answers: ids.
        """
        keys = [digest_of([prompt.tolist(), ids.tolist()]) for prompt, ids in zip(prompts, answers, strict=True)]
        new = [at for at, key in enumerate(keys) if key not in self._cache]
        if new:
            found = self._losses([(prompts[at], answers[at]) for at in new])
            self._cache.add({keys[at]: loss for at, loss in zip(new, found, strict=True)})
        return np.array([self._cache[key] for key in keys], np.float64)

    def alone(self, answers: Sequence[Ids]) -> NDArray[np.float64]:
        """The mean loss of each answer without a prompt (answers,), in nats per token.

        Args:
            answers: ids.
        """
        return self.after([self._start] * len(answers), answers)

    def _answer(self, example: Example) -> Answer | None:
        if example.completions:
            best = max(example.completions, key=lambda each: each.score)
            example = replace(example, messages=(*(example.messages or ()), *best.messages), completions=())
        turns = example.messages or ()
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            return None
        renderer = self._renderer
        try:
            ((ids, mask),) = renderer.tokenize_many(renderer.render(example, learn="last")[-1:])
        except UnusableError:
            return None
        has_loss = np.flatnonzero(mask)
        if not len(has_loss) or len(ids) > self._most:
            return None
        end = int(has_loss[-1]) + 1
        start = end - int(np.argmin(mask[:end][::-1])) if not mask[:end].all() else 0
        while end > start and int(ids[end - 1]) in self._ends:
            end -= 1
        return Answer(ids[:start], ids[start:end]) if 0 < start < end else None

    def _losses(self, rows: Sequence[tuple[Ids, Ids]]) -> list[float]:
        masks = [np.arange(len(prompt) + len(ids)) >= len(prompt) for prompt, ids in rows]
        whole = [np.concatenate(row).astype(np.int32) for row in rows]
        table = TokenTable.build((ids, mask, SOURCE) for ids, mask in zip(whole, masks, strict=True))
        found = [0.0] * len(rows)
        for items, batch in evaluation_batches(self._model, table, range(len(rows)), TOKENS):
            losses = torch.split(next_token_losses(self._model, batch).double().cpu(), batch.loss_tokens_per_row)
            for item, each in zip(items, losses, strict=True):
                found[item] = float(each.mean())
        return found

    @cached_property
    def _model(self) -> "PreTrainedModel":
        return self._opened.reference.packing_model(self._opened.dtype, self._opened.device)

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._opened.tokenizer)

    @cached_property
    def _start(self) -> Ids:
        """What a document begins with; the token that ends one, if it begins with none."""
        ids = self._renderer.bos_of_document or [self._renderer.end_of_document]
        return np.array(ids, np.int32)

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens after an answer that are the template's."""
        return self._renderer.control_tokens | self._renderer.white_space_tokens


def difficulties(
    losses: AnswerLosses, examples: Sequence[Example], done: Callable[[int], Any] = lambda count: None
) -> NDArray[np.float64]:
    """The instruction-following difficulty of rows (rows,); NaN for a row that has none (`AnswerLosses.answers`).

    Args:
        losses: of the model.
        examples: the rows.
        done: called with the number of rows that are known, as it grows.
    """
    found = np.full(len(examples), np.nan)
    for start in range(0, len(examples), ROWS):
        answers = losses.answers(examples[start : start + ROWS])
        rows = [start + at for at, answer in enumerate(answers) if answer is not None]
        known = [answer for answer in answers if answer is not None]
        ids = [answer.ids for answer in known]
        after, alone = losses.after([answer.prompt for answer in known], ids), losses.alone(ids)
        found[rows] = after / np.maximum(alone, 1e-9)
        done(min(start + ROWS, len(examples)))
    return found
