"""A run's model beside its base: what both write, and whether the base's general abilities are still there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.config.recipe import Recipe
from tunesmith.demo.standard_library import documented
from tunesmith.inference.generate import BASE, Generator
from tunesmith.inference.held_out import RowLosses
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.models.precision import device_of, writing_dtype
from tunesmith.models.quiet import no_warnings

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
    tuned: the trained model.
    base: what it was trained from: the same object if that is the model without its adapter.
    """

    tuned: Generator
    base: Generator

    @classmethod
    def of(cls, run: Path) -> "SideBySide":
        """The model of a finished run.

        Raises:
            UserError: the run has not finished, or its base cannot be loaded.
        """
        reference, device = ModelReference.find(str(run)), device_of("auto")
        dtype = writing_dtype("auto", device)
        tuned = Generator.of(reference, dtype, device)
        if reference.adapter is None:
            alone = ModelReference(Recipe.load(run / "recipe.yaml").base, reference.head)
        elif tuned.has_base:
            return cls(tuned, tuned)
        else:
            alone = reference.without_adapter()
        return cls(tuned, Generator.of(alone, dtype, device, tokenizer=tuned.tokenizer))

    def base_answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The base's answer to each question, always taking the most likely token."""
        return _answers(self.base, questions, max_new_tokens, BASE)

    def tuned_answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The tuned model's answer to each question, always taking the most likely token."""
        return _answers(self.tuned, questions, max_new_tokens)

    def general_losses(self) -> tuple[RowLosses, RowLosses]:
        """The base's and the tuned model's loss on prose that is not in the demo's rows: what the standard library's
        modules say of themselves."""
        rows = self._prose()
        return _losses(self.base, rows, BASE), _losses(self.tuned, rows)

    def _prose(self) -> list[list[int]]:
        texts = sorted(
            (thing.docstring for thing in documented() if thing.kind == "module"), key=lambda text: -len(text.split())
        )
        with no_warnings():  # about the length of texts, which are cut
            return [self.tuned.ids(text)[:LONGEST] for text in texts[:TEXTS]]


def _answers(
    generator: Generator, questions: Sequence[str], max_new_tokens: int, adapter: str | None = None
) -> list[str]:
    chats = [({"role": "user", "content": question},) for question in questions]
    return generator.answers(chats, Sampling(max_new_tokens=max_new_tokens), adapter=adapter)


def _losses(generator: Generator, rows: Sequence[list[int]], adapter: str | None = None) -> RowLosses:
    scores = generator.scores([(ids[:1], ids[1:]) for ids in rows], adapter)
    return RowLosses(np.array([-sum(row) for row in scores]), np.array([len(row) for row in scores]))
