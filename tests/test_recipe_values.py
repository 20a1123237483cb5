"""Values that a recipe's `base` and `data` sections accept and refuse, and values from YAML and from `--set`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.config.recipe import Recipe
from tunesmith.config.yaml_text import read_yaml, set_field, to_yaml
from tunesmith.errors import UserError


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        Recipe.load(values)
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": []}, "recipe: data.train: list should have at least 1 item after validation, not 0"),
        ({"train": 3}, "recipe: data.train: input should be a valid list (it is 3)"),
        ({"held_out": 1}, "recipe: data.held_out: must be a share in [0, 1) of the rows, or paths (it is 1)"),
        ({"held_out": -0.1}, "recipe: data.held_out: must be a share in [0, 1) of the rows, or paths (it is -0.1)"),
        ({"folds": 1}, "recipe: data.folds: input should be greater than or equal to 2 (it is 1)"),
        ({"folds": 101}, "recipe: data.folds: input should be less than or equal to 100 (it is 101)"),
        ({"folds": 3, "fold": 0}, "recipe: data.fold: input should be greater than or equal to 1 (it is 0)"),
        ({"folds": 3, "fold": 4}, "recipe: data: fold: 4 is not one of folds: 3"),
        ({"fold": 1}, "recipe: data: fold: 1 is not one of folds: None"),
        ({"folds": 3, "held_out": 0.1}, "recipe: data: folds hold every training row out once"),
        ({"folds": 3, "held_out": "b.csv"}, "recipe: data: folds hold every training row out once"),
        ({"max_length": 7}, "recipe: data.max_length: input should be greater than or equal to 8 (it is 7)"),
        ({"overflow": "cut"}, "recipe: data.overflow: input should be 'auto', 'refuse', 'truncate', 'split' or"),
        ({"max_malformed": 1.1}, "recipe: data.max_malformed: input should be less than or equal to 1 (it is 1.1)"),
        ({"max_malformed": -1}, "recipe: data.max_malformed: input should be greater than or equal to 0 (it is -1)"),
        ({"replay_share": 0}, "recipe: data.replay_share: input should be greater than 0 (it is 0)"),
        ({"replay_share": 1}, "recipe: data.replay_share: input should be less than 1 (it is 1)"),
    ],
)  # fmt: skip
def test_invalid_values_of_data_are_refused(data: dict[str, Any], message: str) -> None:
    assert refused({"data": {"train": "a.csv", **data}}).startswith(message)


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"folds": 2, "fold": 2}, "fold", 2),
        ({"folds": 100}, "folds", 100),
        ({"held_out": 0}, "held_out", 0.0),
        ({"held_out": "b.csv"}, "held_out", ["b.csv"]),
        ({"held_out": Path("b.csv")}, "held_out", ["b.csv"]),
        ({"train": Path("b.csv")}, "train", ["b.csv"]),
        ({"train": ["b.csv", "c.csv"]}, "train", ["b.csv", "c.csv"]),
        ({"replay": "b.csv"}, "replay", ["b.csv"]),
        ({"max_length": 8}, "max_length", 8),
        ({"max_malformed": 1}, "max_malformed", 1.0),
    ],
)
def test_values_of_data_at_their_limits_and_short_forms_are_accepted(
    data: dict[str, Any], field: str, value: Any
) -> None:
    loaded = getattr(Recipe.load({"data": {"train": "a.csv", **data}}).data, field)
    assert loaded == value
    assert type(loaded) is type(value)


def test_data_and_base_have_the_documented_defaults() -> None:
    recipe = Recipe.load({"data": {"train": "a.csv"}})
    assert recipe.data.model_dump() == {
        "train": ["a.csv"], "held_out": 0.05, "folds": None, "fold": None, "format": "auto", "columns": {},
        "max_length": 1024, "overflow": "auto", "max_malformed": 0.01, "skip_unusable": False, "pack": True,
        "replay": [], "replay_share": 0.1, "cache": True, "checks": False, "clean": False,
        "mix": {}, "order": "as_drawn",
    }  # fmt: skip
    assert recipe.base.model_dump() == {
        "path": "embedded", "revision": None, "weights": "auto", "double_quantization": True, "from_scratch": False,
        "adapter": None, "chat_template": None, "trust_remote_code": False,
    }  # fmt: skip
    assert [Recipe.load({"data": {"train": "a"}, "base": {"weights": weights}}).base.quantized for weights in
            ("auto", "fp32", "bf16", "int8", "nf4", "fp4")] == [False] * 3 + [True] * 3  # fmt: skip


CLASSIFICATION = {"kind": "classification", "labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("objective", "data", "message"),
    [
        (CLASSIFICATION, {"format": "alpaca"}, "needs rows in the format classification, not data.format: alpaca"),
        ("token_classification", {"format": "text"}, "in the format words or entities, not data.format: text"),
        ("embedding", {"pack": False}, "data.pack: false gives the model one row at a time, and objective: embedding"),
        (CLASSIFICATION, {"overflow": "split"}, "data.overflow: split would separate a text from its target. "),
        (CLASSIFICATION, {"replay": "b.csv"}, "data.replay needs a decoder that writes text, not objective: cl"),
        ("seq2seq", {"replay": "b.csv"}, "data.replay needs a decoder that writes text, not objective: seq2seq"),
    ],
)  # fmt: skip
def test_data_settings_that_conflict_with_the_objective_are_refused(
    objective: Any, data: dict[str, Any], message: str
) -> None:
    assert message in refused({"data": {"train": "a.csv", **data}, "objective": objective})


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (CLASSIFICATION, {"format": "classification"}),
        (CLASSIFICATION, {"pack": False}),
        (CLASSIFICATION, {"overflow": "truncate"}),
        ("token_classification", {"format": "entities"}),
        ("text", {"overflow": "split", "replay": "b.csv"}),
        ("instruction", {"format": "alpaca", "pack": False, "overflow": "split"}),
        ("embedding", {"overflow": "drop"}),
    ],
)
def test_data_settings_that_suit_the_objective_are_accepted(objective: Any, data: dict[str, Any]) -> None:
    loaded = Recipe.load({"data": {"train": "a.csv", **data}, "objective": objective}).data.model_dump(mode="json")
    assert {name: loaded[name] for name in data} == {**data, **({"replay": ["b.csv"]} if "replay" in data else {})}


def test_existing_paths_globs_and_home_paths_become_absolute_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, beside, here = (tmp_path / name for name in ("home", "beside", "here"))
    for directory in (home, beside, here):
        (directory / "in").mkdir(parents=True)
        (directory / "both.csv").write_text("")
    (here / "here.csv").write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    paths = ["both.csv", "here.csv", "in/*.csv", "nowhere/*.csv", "~/both.csv", "owner/name", "hf://owner/name"]
    data = {"train": paths, "replay": ["both.csv"], "held_out": ["here.csv"]}
    loaded = Recipe.from_values({"data": data}, "recipe", beside).data
    assert loaded.train == [
        f"{beside}/both.csv",
        f"{here}/here.csv",
        f"{beside}/in/*.csv",
        "nowhere/*.csv",
        f"{home}/both.csv",
        "owner/name",
        "hf://owner/name",
    ]
    assert (loaded.replay, loaded.held_out) == ([f"{beside}/both.csv"], [f"{here}/here.csv"])


# YAML


def write_and_read(directory: Path, text: str) -> dict[str, Any]:
    (directory / "recipe.yaml").write_text(text, encoding="utf-8")
    return read_yaml(directory / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E+3", 1000.0), ("1e4", 10000.0), ("-2.5e-3", -2.5e-3), (".5", 0.5), ("5.", 5.0),
        ("+1.5", 1.5), ("3", 3), ("-3", -3), ("true", True), ("null", None), ("~", None), (".inf", float("inf")),
        ("-.INF", float("-inf")), ("1e", "1e"), ("e4", "e4"), ("1.2.3", "1.2.3"), ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"), ("12GB", "12GB"),
    ],
)  # fmt: skip
def test_numbers_and_strings_are_read_with_their_type(text: str, value: Any, tmp_path: Path) -> None:
    loaded = write_and_read(tmp_path, f"a: {text}")["a"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "recipe.yaml line 3: not valid YAML: c is given twice"),
        ("a: 1\na: 2\n", "recipe.yaml line 1: not valid YAML: a is given twice"),
        ("a: [1\n", "recipe.yaml line 2: not valid YAML: "),
        ("", "recipe.yaml: a recipe is a mapping with at least data.train; this is NoneType."),
        ("- 1", "recipe.yaml: a recipe is a mapping with at least data.train; this is list."),
    ],
)
def test_invalid_yaml_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, text)
    assert str(error.value).startswith(message)


def test_a_binary_file_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"a\.yaml: cannot be read as a recipe: 'utf-8' codec"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b\.yaml: no such recipe"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="cannot be read as a recipe"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("before", "override", "after"),
    [
        ({}, "train.lr=1e-4", {"train": {"lr": 1e-4}}),
        ({"train": {"a": 1}}, "train.b=[1, x]", {"train": {"a": 1, "b": [1, "x"]}}),
        ({"train": None}, " train.b =", {"train": {"b": None}}),
        ({"base": "m"}, "base.weights=nf4", {"base": {"path": "m", "weights": "nf4"}}),
        ({"method": "lora"}, "method.rank=4", {"method": {"kind": "lora", "rank": 4}}),
        ({"objective": "text"}, "objective.a=b=c", {"objective": {"kind": "text", "a": "b=c"}}),
        ({"data": {"columns": {"a": "x"}}}, "data.columns.b=y", {"data": {"columns": {"a": "x", "b": "y"}}}),
        ({"train": {"epochs": 3}}, "train.steps=5", {"train": {"steps": 5}}),
        ({"train": {"steps": 3}}, "train.epochs=2", {"train": {"epochs": 2}}),
        ({"train": {"steps": 3}}, "train.epochs=null", {"train": {"steps": 3, "epochs": None}}),
        ({"other": {"steps": 3}}, "other.epochs=2", {"other": {"steps": 3, "epochs": 2}}),
        ({"method": "lora"}, "method=full", {"method": "full"}),
    ],
)
def test_set_field_changes_exactly_one_value(before: dict[str, Any], override: str, after: dict[str, Any]) -> None:
    set_field(before, override)
    assert before == after


def test_set_field_copies_nested_dicts_instead_of_changing_them() -> None:
    shared = {"a": 1}
    values = {"train": shared}
    set_field(values, "train.a=2")
    assert (shared, values) == ({"a": 1}, {"train": {"a": 2}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.a", "--set train.a: write KEY=VALUE, for example train.learning_rate=1e-4."),
        ("=1", "--set =1: write KEY=VALUE"),
        ("train.a.b=1", "--set train.a.b=1: a has no fields."),
        ("data.b=1", "--set data.b=1: data has no fields."),
        ("train.a=[1", "--set train.a=[1: the value is not valid YAML."),
    ],
)
def test_set_field_refuses_an_invalid_key_or_value(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        set_field({"train": {"a": 1}, "data": "x"}, override)
    assert str(error.value).startswith(message)


def test_written_yaml_reads_back_in_order_here_and_in_yaml_1_1(tmp_path: Path) -> None:
    values = {
        "z": 1e-05, "a": 1e22, "b": 1.5e-7, "c": "1e-4", "d": "yes", "e": None, "f": ["é", "a\x85b", "\u2028"],
        "g": 3.0,        "h": {"y": float("inf"), "x": "null", "w": "3", "v": ".5"},
    }  # fmt: skip
    text = to_yaml(values)
    assert write_and_read(tmp_path, text) == values
    assert list(write_and_read(tmp_path, text)) == list(values)
    assert yaml.safe_load(text) == values
    assert "z: 1.0e-05" in text
    assert "é" in to_yaml({"a": "é"}), "letters are not escaped"
    assert "{" not in text, "one field per line"
