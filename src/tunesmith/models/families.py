"""Which of transformers' families write text over paged caches."""

import json
from dataclasses import dataclass
from pathlib import Path

STORED = Path(__file__).with_name("families.json")
"""Written by `benchmarks/paged_families.py`."""


@dataclass(frozen=True, slots=True)
class Families:
    """Families by how the generation engine keeps what a model has read, each as `model_type` in `config.json`.

    Attributes:
        transformers: the version whose families these are.
        paged: keys and values are in the engine's pages.
        own: transformers' own caches, in padded batches.
        not_tried: no small model of them could be made.
    """

    transformers: str
    paged: list[str]
    own: list[str]
    not_tried: list[str]


def families() -> Families:
    """The list, as it was found by the trial that each model gets when it is loaded (`inference.paged_model`)."""
    return Families(**json.loads(STORED.read_text(encoding="utf-8")))
