"""Configs of well-known models, as published by their makers, so that a plan needs no network."""

import json
from functools import cache
from pathlib import Path

from tunesmith.config.base import Base

HERE = Path(__file__).parent


@cache
def known_configs() -> dict[str, list[str]]:
    """Hub names by short name."""
    names: dict[str, list[str]] = json.loads((HERE / "hub_names.json").read_text(encoding="utf-8"))
    return names


def with_known_config(base: Base) -> Base:
    """The base with the shipped config of that name; unchanged if there is none, or if a directory has that name."""
    if Path(base.path).exists():
        return base
    for name, hub_names in known_configs().items():
        if base.path.lower() in (name, *(hub_name.lower() for hub_name in hub_names)):
            return base.model_copy(update={"path": str(HERE / name)})
    return base


def shown_name(path: str) -> str:
    """The base's name for display: the short name of a shipped config, else its path."""
    return Path(path).name if Path(path).parent == HERE else path
