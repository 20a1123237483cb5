"""A run's model beside its base: what both write, and whether the base's general abilities are still there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tunesmith.data.example import Source
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.demo.standard_library import documented
from tunesmith.inference.generate import Sampling, answers
from tunesmith.inference.held_out import RowLosses, held_out_losses
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.precision import device_of, dtype_of
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.text import Text

GENERAL_QUESTIONS = (
    "What is the capital of France?",
    "Why do leaves change their color in autumn?",
    "Name three animals that can fly.",
    "What does a doctor do?",
    "Write one sentence about the sea.",
)
"""Questions that have nothing to do with the demo's rows."""

TEXTS, LONGEST = 12, 64
"""How many general texts, and the most tokens in each."""


@dataclass(frozen=True)
class SideBySide:
    """Attributes:
    model: with its adapter, which is turned off for the base's side.
    tokenizer: of both.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, run: Path) -> "SideBySide":
        """The model of a finished run, which has an adapter.

        Raises:
            UserError: the run has not finished, or its base cannot be loaded.
        """
        reference = ModelReference.find(str(run))
        device = device_of("auto")
        return cls(reference.model(dtype_of("auto", device), device), reference.tokenizer())

    def base_answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The base's answer to each question, always taking the most likely token."""
        with self.model.disable_adapter():
            return self.tuned_answers(questions, max_new_tokens)

    def tuned_answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The tuned model's answer to each question, always taking the most likely token."""
        use_cached_attention(plain_model(self.model))
        chats = [({"role": "user", "content": question},) for question in questions]
        return answers(self.model, self.tokenizer, chats, Sampling(max_new_tokens=max_new_tokens))

    def general_losses(self) -> tuple[RowLosses, RowLosses]:
        """The base's and the tuned model's loss on prose that is not in the demo's rows: what the standard library's
        modules say of themselves."""
        table = TokenTable.build(self._prose())
        objective, rows = Text().build(), range(len(table))
        use_document_attention(plain_model(self.model))
        with self.model.disable_adapter():
            base = held_out_losses(self.model, objective, table, rows, TEXTS * LONGEST)
        return base, held_out_losses(self.model, objective, table, rows, TEXTS * LONGEST)

    def _prose(self) -> Iterator[Tokens]:
        texts = sorted(
            (thing.docstring for thing in documented() if thing.kind == "module"), key=lambda text: -len(text.split())
        )
        for number, text in enumerate(texts[:TEXTS], 1):
            ids = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST], np.int32)
            yield ids, np.ones(len(ids), np.bool_), Source("the standard library", number)
