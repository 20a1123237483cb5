"""The models that some checks need."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Models:
    """Models by name: a run, a directory, a short or a hub name; empty for none.

    Attributes:
        encoder: embeds texts, to find rows that mean the same.
        toxicity: classifies texts, as toxic among others; `NAME#LABEL` names its label.
    """

    encoder: str = ""
    toxicity: str = ""

    @property
    def lacking(self) -> frozenset[str]:
        """The names of the checks that need a model which is not given."""
        needed = {"semantic_duplicates": self.encoder, "toxicity": self.toxicity}
        return frozenset(name for name, model in needed.items() if not model)

    @property
    def fingerprints(self) -> list[Any]:
        """What the models are, by their content, and the label."""
        from tunesmith.inference.model_reference import fingerprint_of

        names = (self.encoder, self.classifier[0])
        return [*(fingerprint_of(name) if name else None for name in names), self.classifier[1]]

    @property
    def classifier(self) -> tuple[str, str]:
        """The name of the model that classifies, and the label that stands for toxic; empty if its name says it."""
        name, _, label = self.toxicity.partition("#")
        return name, label
