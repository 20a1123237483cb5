"""Configs of well-known models, as published by their makers, so that a plan needs no network."""

from pathlib import Path

from tunesmith.config.base import Base
from tunesmith.models.bases import known_bases

HERE = Path(__file__).parent


def with_known_config(base: Base) -> Base:
    """The base with the shipped config of that name; unchanged if there is none, or if it is on this machine."""
    if Path(base.path).exists():
        return base
    for name, known in known_bases().items():
        if base.path.lower() in (name, *(hub_name.lower() for hub_name in known.hub)):
            if base.path == name and known.located() is not None:
                return base
            return base.model_copy(update={"path": str(HERE / known.shape)})
    return base


def shown_name(path: str) -> str:
    """The base's name for display: the short name of a shipped config, else its path."""
    return Path(path).name if Path(path).parent == HERE else path
