"""A recipe is strict, its errors name the field, and it survives a round trip through YAML."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tunesmith.config.base import Base
from tunesmith.config.data import Data
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS, OBJECTIVES
from tunesmith.config.schema import STORED, recipe_schema, schema_of_classes
from tunesmith.config.train import EarlyStopping, Train
from tunesmith.errors import UserError

MINIMAL = """\
base: embedded                  # or a directory, or a hub name
data:
  train: rows.jsonl             # a path, a glob, a directory, or a list of them
  held_out: 0.05                # a share, or a path
  max_length: 1024              # tokens
method: {kind: lora, rank: 16, alpha: 32, target_modules: all-linear}
objective: {kind: instruction}
train:
  {steps: 200, tokens_per_step: 2048, learning_rate: 1e-4, schedule: cosine, seed: 0, precision: bf16,
  checkpoint_every: 50}
"""


def load(text: str, directory: Path, *overrides: str) -> Recipe:
    file = directory / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return Recipe.load(file, list(overrides))


def test_the_minimal_recipe_loads_and_every_other_field_has_a_default(tmp_path: Path) -> None:
    recipe = load(MINIMAL, tmp_path)
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.epochs is None
    assert load("data: {train: rows.jsonl}", tmp_path).train.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {learning_rat: 1}",
            "recipe.yaml: train.learning_rat is not a field. Did you mean train.learning_rate?",
        ),
        ("method: {kind: lora, rnak: 8}", "method.rnak is not a field. Did you mean method.rank?"),
        ("dat: {}", "dat is not a field. Did you mean data?"),
        ("objective: {kind: instructions}", "Did you mean instruction?"),
        ("train: {steps: 5, epochs: 2}", "set steps or epochs, not both"),
        ("train: {steps: zero}", "train.steps: input should be a valid integer"),
        ("train: {learning_rate: -1}", "train.learning_rate: input should be greater than 0 (it is -1)"),
        ("data: {train: rows.jsonl, held_out: 1.5}", "must be a share in [0, 1)"),
        ("train: {seed: 1, seed: 2}", "seed"),
    ],
)
def test_an_error_names_the_field_and_the_problem(text: str, message: str, tmp_path: Path) -> None:
    if not text.startswith("data:"):
        text = "data: {train: rows.jsonl}\n" + text
    with pytest.raises(UserError) as error:
        load(text, tmp_path)
    assert message in str(error.value)


def test_a_missing_file_or_one_without_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such recipe. `tunesmith init DATA` writes one"):
        Recipe.load(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load("- a list", tmp_path)
    with pytest.raises(UserError, match=r"recipe.yaml line 2: not valid YAML"):
        load("data:\n\t- x", tmp_path)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=1e-4", lambda recipe: recipe.train.learning_rate == 1e-4),
        ("train.learning_rate=1e-04", lambda recipe: recipe.train.learning_rate == 1e-4),
        ("train.epochs=2", lambda recipe: (recipe.train.epochs, recipe.train.steps) == (2, None)),
        ("method=full", lambda recipe: recipe.method.kind == "full"),
        ("method.rank=4", lambda recipe: recipe.method.rank == 4),
        ("base=some/model", lambda recipe: recipe.base.path == "some/model"),
        ("base.revision=main", lambda recipe: recipe.base.revision == "main"),
        ("data.train=[a.jsonl, b.jsonl]", lambda recipe: recipe.data.train == ["a.jsonl", "b.jsonl"]),
    ],
)
def test_an_override_sets_a_field(override: str, read: Any, tmp_path: Path) -> None:
    assert read(load(MINIMAL, tmp_path, override))


@pytest.mark.parametrize("override", ["train.learning_rate", "=3", "train.steps.more=1", "train.lr=1"])
def test_an_invalid_override_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load(MINIMAL, tmp_path, override)


@given(
    rate=st.floats(1e-12, 1e3),
    steps=st.integers(1, 10**9),
    columns=st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=3),
    held_out=st.one_of(st.floats(0, 0.99), st.lists(st.sampled_from(["a.jsonl", "b c.csv", "yes", "1e5"]), min_size=1)),
)
def test_a_recipe_survives_a_round_trip_through_yaml(rate: float, steps: int, columns: dict, held_out: Any) -> None:
    values = {
        "data": {"train": "rows.jsonl", "columns": columns, "held_out": held_out},
        "train": {"learning_rate": rate, "steps": steps},
    }
    recipe = Recipe.load(values)
    from tunesmith.config.yaml_text import _Loader

    assert Recipe.load(yaml.load(recipe.to_yaml(), Loader=_Loader)) == recipe


def test_paths_are_resolved_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe = load("data: {train: rows.jsonl, held_out: rows.jsonl}", tmp_path / "deep")
    assert recipe.data.train == recipe.data.held_out == [str(tmp_path / "deep" / "rows.jsonl")]


REQUIRED = (("Recipe", "data"), ("Data", "train"), ("Peft", "peft_type"), ("Distillation", "teacher"))


def test_every_field_has_a_description() -> None:
    kinds = [registry.load(kind) for registry in (METHODS, OBJECTIVES) for kind in registry]
    models: list[type[BaseModel]] = [Recipe, Base, Data, Train, EarlyStopping, *kinds]
    for model in models:
        assert model.__doc__, model
        for name, field in model.model_fields.items():
            assert name == "kind" or len(field.description or "") > 20, f"{model.__name__}.{name}"
            assert not field.is_required() or (model.__name__, name) in REQUIRED


def test_the_stored_schema_is_that_of_the_classes() -> None:
    written = json.dumps(schema_of_classes(), indent=2) + "\n"
    assert STORED.read_text(encoding="utf-8") == written, "write it again: make schema"
    assert recipe_schema() == json.loads(written)


def test_the_schema_accepts_valid_recipes_and_refuses_invalid_ones() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(MINIMAL.replace("1e-4", "0.0001"))
    validator.validate(good)
    for change in ({"method": "lora"}, {"objective": "text"}, {"base": "embedded"}):
        validator.validate({**good, **change})
        Recipe.load({**good, **change})
    for name in ("train", "held_out", "replay"):
        for paths in ("a.jsonl", ["a.jsonl", "b.jsonl"]):
            values = {**good, "data": {"train": "rows.jsonl", name: paths}}
            validator.validate(values)
            assert getattr(Recipe.load(values).data, name) == ([paths] if isinstance(paths, str) else paths)
    for change in ({"train": {"learning_rat": 1}}, {"method": {"kind": "lorra"}}, {"method": 3}, {"dat": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**good, **change})
