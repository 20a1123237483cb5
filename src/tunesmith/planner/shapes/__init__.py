"""Well-known models by their configs alone, as their makers published them, so that a plan needs no network."""

import json
from functools import cache
from pathlib import Path

from tunesmith.config.recipe import Base

HERE = Path(__file__).parent


@cache
def known_shapes() -> dict[str, list[str]]:
    """Hub names by short name."""
    found: dict[str, list[str]] = json.loads((HERE / "hub_names.json").read_text(encoding="utf-8"))
    return found


def with_known_shape(base: Base) -> Base:
    """The base by its shipped config, where it is named so and is no directory here; otherwise as it is."""
    if Path(base.path).exists():
        return base
    for name, on_hub in known_shapes().items():
        if base.path.lower() in (name, *(each.lower() for each in on_hub)):
            return base.model_copy(update={"path": str(HERE / name)})
    return base


def shown_name(path: str) -> str:
    """A base as the user knows it."""
    return Path(path).name if Path(path).parent == HERE else path
