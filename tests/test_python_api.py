"""The public API: every name is there, typed and documented, and a user's program of it passes mypy --strict."""

import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import tunesmith

FUNCTIONS = [name for name in tunesmith.__all__ if inspect.isfunction(getattr(tunesmith, name))]
CLASSES = [name for name in tunesmith.__all__ if inspect.isclass(getattr(tunesmith, name))]


def test_every_public_name_is_a_function_or_a_class() -> None:
    assert sorted([*FUNCTIONS, *CLASSES]) == sorted(tunesmith.__all__)
    assert set(dir(tunesmith)) >= set(tunesmith.__all__)


def documented_and_typed(name: str, function: object) -> None:
    """Args, Returns and types of a public function or method."""
    text = inspect.getdoc(function) or ""
    assert text, f"{name} has no documentation"
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    assert all(each.annotation is not each.empty for each in parameters), f"{name}: a parameter has no type"
    assert signature.return_annotation is not signature.empty, f"{name}: no type of what it returns"
    refers = re.search(r"Arguments(?: and errors)? (?:are|as)", text)
    for each in parameters:
        assert refers or re.search(rf"^\s+{each.name}:", text, re.M), f"{name}: {each.name} is not documented"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_is_typed_and_documented(name: str) -> None:
    documented_and_typed(name, getattr(tunesmith, name))


@pytest.mark.parametrize("name", ["Model", "Trainer"])
def test_every_method_of_the_two_main_classes_is_typed_and_documented(name: str) -> None:
    for method, function in inspect.getmembers(getattr(tunesmith, name), callable):
        if not method.startswith("_"):
            documented_and_typed(f"{name}.{method}", function)


def test_a_users_program_is_checked_with_the_sources() -> None:
    """`make check` runs mypy --strict over it."""
    root = Path(__file__).parents[1]
    assert '"tests/user_program.py"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert get_type_hints(tunesmith.Trainer.step)["return"] == dict[str, float]
