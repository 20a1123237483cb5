"""The public API: every name is there, typed and documented, and a user's program of it passes mypy --strict."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import get_type_hints

import pytest
from pydantic import BaseModel
from raises import members, plain, raises_user_error

import tunesmith
from tunesmith.errors import UserError
from tunesmith.inference.verbs import ChatOptions, GenerateOptions

FUNCTIONS = [name for name in tunesmith.__all__ if inspect.isfunction(getattr(tunesmith, name))]
CLASSES = [name for name in tunesmith.__all__ if inspect.isclass(getattr(tunesmith, name))]

LEAVES_OUT = ("recipe_schema",)
"""Code that cannot be imported is left out there."""


def callables() -> Iterator[tuple[str, FunctionType, type | None, bool]]:
    """Every public function, method and property: its name, its function, its class, whether it is a property."""
    for name in tunesmith.__all__:
        value = getattr(tunesmith, name)
        if not isinstance(value, type):
            yield name, value, None, False
            continue
        for method, member in members(value).items():
            function = plain(member)
            if function is not None and not method.startswith("_"):
                is_property = not callable(member) and not isinstance(member, classmethod | staticmethod)
                yield f"{name}.{method}", function, value, is_property


CALLABLES = {name: rest for name, *rest in callables()}


def test_every_public_name_is_a_function_or_a_class() -> None:
    assert sorted([*FUNCTIONS, *CLASSES]) == sorted(tunesmith.__all__)
    assert set(dir(tunesmith)) >= set(tunesmith.__all__)


def sections(function: object) -> dict[str, str]:
    """The parts of a docstring by their headings; the first has none."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises):$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def names_in(section: str) -> set[str]:
    """The names that a section explains: `name: …`, or `one, other: …`."""
    lines = re.findall(r"^ {4}(\w+(?:, \w+)*):", section, re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


def own_parameters(function: FunctionType) -> list[inspect.Parameter]:
    return [each for each in inspect.signature(function).parameters.values() if each.name not in ("self", "cls")]


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_function_has_types_args_and_returns(name: str) -> None:
    function, _, is_property = CALLABLES[name]
    documented = sections(function)
    assert documented[""].strip(), "no documentation"
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty, "no type of what it returns"
    for each in own_parameters(function):
        assert each.annotation is not each.empty, f"{each.name} has no type"
        assert each.name in names_in(documented.get("Args", "")), f"{each.name} is not documented"
    names = {each.name for each in own_parameters(function)}
    assert names_in(documented.get("Args", "")) <= names, "a documented argument does not exist"
    if not is_property and get_type_hints(function)["return"] is not type(None):
        assert documented.keys() & {"Returns", "Yields"}, "what it returns is not documented"


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_function_documents_that_it_raises_user_errors(name: str) -> None:
    """`tests/raises.py` says which do. An abstract method may document more than its own source does."""
    function, owner, _ = CALLABLES[name]
    if raises_user_error(function, owner) and name not in LEAVES_OUT:
        assert "UserError: " in sections(function).get("Raises", "")


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_documents_its_fields_or_arguments(name: str) -> None:
    owner = getattr(tunesmith, name)
    documented = sections(owner)
    assert documented[""].strip(), "no documentation"
    if issubclass(owner, BaseModel):
        for field, about in owner.model_fields.items():
            assert about.description, f"{field} is not documented"
        return
    explained = names_in(documented.get("Args", "")) | names_in(documented.get("Attributes", ""))
    if is_dataclass(owner):
        assert explained >= {each.name for each in fields(owner)}
    elif (made := plain(members(owner).get("__init__"))) is not None:
        assert explained >= {each.name for each in own_parameters(made)}
        assert "Raises" in documented or not raises_user_error(made, owner)


def test_raised_errors_are_found_in_what_a_function_calls() -> None:
    """The finder itself, on functions whose answer is known."""
    assert raises_user_error(plain(vars(tunesmith.Trainer)["save"]), tunesmith.Trainer)
    loads = plain(inspect.getattr_static(tunesmith.Model, "model"))
    assert raises_user_error(loads, tunesmith.Model), "a property that loads"
    assert raises_user_error(tunesmith.generate), "through load and a method of its result"
    assert not raises_user_error(tunesmith.embedded_base)
    assert not raises_user_error(tunesmith.list_bases)


def test_the_options_of_generate_and_chat_are_those_of_the_models_methods() -> None:
    for options, method in ((GenerateOptions, tunesmith.Model.generate), (ChatOptions, tunesmith.Model.chat)):
        keywords = [each for each in own_parameters(method) if each.kind is each.KEYWORD_ONLY]
        hints = get_type_hints(method)
        assert get_type_hints(options) == {each.name: hints[each.name] for each in keywords}


@pytest.mark.parametrize("verb", ["generate", "chat", "classify", "embed", "score"])
def test_a_verb_takes_the_device_and_the_precision_of_its_model(verb: str) -> None:
    usual = inspect.signature(tunesmith.load).parameters
    for option, message in (("device", "no_such_device"), ("precision", "int3")):
        assert inspect.signature(getattr(tunesmith, verb)).parameters[option].default == usual[option].default
        with pytest.raises(UserError, match=message):
            getattr(tunesmith, verb)("embedded", ["a text"], **{option: message})


def test_a_users_program_is_checked_with_the_sources() -> None:
    """`make check` runs mypy --strict over it."""
    root = Path(__file__).parents[1]
    assert '"tests/user_program.py"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert get_type_hints(tunesmith.Trainer.step)["return"] == dict[str, float]
