"""Every setting has a test that shows its effect: lists the settings, and records which test covers which setting."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from tunesmith.cli import command
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS, OBJECTIVES

Test = TypeVar("Test", bound=Callable[..., Any])

SHOWN: dict[str, list[str]] = {}
"""The tests that show a setting's effect, by the setting's name."""


def shows(*settings: str) -> Callable[[Test], Test]:
    """Mark a test of `tests/settings` that fails if one of these settings has no effect or the wrong one.

    Args:
        settings: `train.betas`, `train.early_stopping.patience`, `method.lora.rank`, `objective.embedding.pooling`,
            `tunesmith generate --top-p`, `tunesmith data check paths`.
    """

    def mark(test: Test) -> Test:
        for setting in settings:
            SHOWN.setdefault(setting, []).append(f"{test.__module__}.{test.__name__}")
        return test

    return mark


def settings_of_recipes() -> Iterator[str]:
    """Every field of a recipe, including the fields of every method and objective."""
    for section in ("base", "data", "train"):
        yield from _fields(Recipe.model_fields[section].annotation, section)
    for section, registry in (("method", METHODS), ("objective", OBJECTIVES)):
        for kind in registry:
            yield from _fields(registry.load(kind), f"{section}.{kind}")


def _fields(model: Any, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from _fields(inner[0], f"{prefix}.{name}")
        elif name != "kind":
            yield f"{prefix}.{name}"


def settings_of_commands() -> Iterator[str]:
    """Every option and argument of every command."""
    yield from _options(command(), "tunesmith")


def _options(command: Any, path: str) -> Iterator[str]:
    for option in command.params:
        yield f"{path} {option.opts[0] if option.param_type_name == 'option' else option.name}"
    for name, inner in getattr(command, "commands", {}).items():
        yield from _options(inner, f"{path} {name}")
