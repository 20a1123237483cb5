"""The models that some checks need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError

NEEDED = {
    "semantic_duplicates": ("encoder", "--encoder"),
    "toxicity": ("toxicity", "--toxicity"),
    "unrelated_answers": ("reader", "--model"),
}
"""Checks that need a model: the field below, and the option that names it."""


@dataclass(frozen=True, slots=True)
class Models:
    """Models by name: a run, a directory, a short or a hub name; empty for none.

    Attributes:
        encoder: embeds texts, to find rows that mean the same.
        toxicity: classifies texts, as toxic among others; `NAME#LABEL` names its label.
        reader: writes text, and says how well it can predict answers with and without their prompts.
    """

    encoder: str = ""
    toxicity: str = ""
    reader: str = ""

    @property
    def lacking(self) -> frozenset[str]:
        """The names of the checks that need a model which is not given."""
        needed = {name: getattr(self, field) for name, (field, _) in NEEDED.items()}
        return frozenset(name for name, model in needed.items() if not model)

    def refuse_lacking(self, only: Sequence[str]) -> None:
        """Refuse checks that are asked for without their model.

        Args:
            only: the names of the checks.

        Raises:
            UserError: one of them needs a model which is not given.
        """
        for name in only:
            if name in self.lacking:
                raise UserError(f"{name} needs a model: name it with {NEEDED[name][1]} NAME.")

    @property
    def fingerprints(self) -> list[Any]:
        """What the models are, by their content, and the label."""
        from tunesmith.inference.model_reference import fingerprint_of

        names = (self.encoder, self.classifier[0], self.reader)
        return [*(fingerprint_of(name) if name else None for name in names), self.classifier[1]]

    @property
    def classifier(self) -> tuple[str, str]:
        """The name of the model that classifies, and the label that stands for toxic; empty if its name says it."""
        name, _, label = self.toxicity.partition("#")
        return name, label
