"""A pipeline's recipes, each stage's base, and a run's directory: its events, its name, and which ones are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.config.yaml_text import read_yaml
from tunesmith.errors import UserError
from tunesmith.run import (
    PIPELINE_FILE,
    Events,
    MetricsFile,
    Run,
    atomic_write,
    jsonable,
    last_stage,
    new_directory,
    resolve_run,
)
from tunesmith.run_lock import LOCK_FILE
from tunesmith.training.stages import _from_weights_of as from_weights_of
from tunesmith.training.stages import train

# A pipeline's recipes

STAGES = """
base: {path: /models/base, weights: bf16}
data: {train: common.jsonl, max_length: 99}
train: {steps: 7}
stages:
  - name: first
    data: {train: own.jsonl}
    method: full
  - train: {epochs: 2}
    objective: text
  - name: third-one.v2
"""


def test_a_stage_has_the_common_sections_except_those_that_it_sets_itself(tmp_path: Path) -> None:
    for name in ("own.jsonl", "common.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "pipeline.yaml").write_text(STAGES, encoding="utf-8")
    pipeline = Pipeline.load(tmp_path / "pipeline.yaml", ["train.seed=5", "method=ia3"])
    assert pipeline is not None
    assert pipeline.names == ("first", "stage2", "third-one.v2")
    assert pipeline.folded is None
    first, second, third = pipeline.recipes
    assert first.data.train == [str(tmp_path / "own.jsonl")]  # its own section replaces the common one
    assert first.data.max_length == 1024
    assert second.data.train == third.data.train == [str(tmp_path / "common.jsonl")]
    assert (second.data.max_length, third.data.max_length) == (99, 99)
    assert [recipe.train.steps for recipe in pipeline.recipes] == [7, None, 7]
    assert (second.train.epochs, second.objective.kind, third.objective.kind) == (2.0, "text", "instruction")
    assert {recipe.train.seed for recipe in pipeline.recipes} == {5}
    assert {recipe.method.kind for recipe in pipeline.recipes} == {"ia3"}
    assert [recipe.base.path for recipe in pipeline.recipes] == ["/models/base", "stage:first", "stage:stage2"]
    assert {recipe.base.weights for recipe in pipeline.recipes} == {"bf16"}


FEEDBACK = """
data: {train: rows.jsonl}
stages:
  - {name: task, base: {path: /models/base, weights: bf16}}
  - {name: liked, objective: {kind: reward}}
  - name: policy
    base: stage:task
    objective:
      kind: online_dpo
      reward: stage:liked
      rewards: [{function: judge, options: {model: "stage:task"}}]
  - {name: other, base: {path: /models/other}, objective: {kind: distillation, teacher: "stage:policy"}}
"""


def test_a_stage_names_an_earlier_one_as_its_base_and_as_a_reward(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(FEEDBACK, encoding="utf-8")
    pipeline = Pipeline.load(tmp_path / "pipeline.yaml", ["base.weights=fp32"])
    assert pipeline is not None
    assert [recipe.base.path for recipe in pipeline.recipes] == [
        "/models/base", "stage:task", "stage:task", "/models/other",
    ]  # fmt: skip
    judge, model = (each.options["model"] for each in pipeline.recipes[2].objective.reward_functions)
    assert (judge, model) == ("stage:task", "stage:liked")
    (tmp_path / PIPELINE_FILE).write_text(pipeline.to_yaml(), encoding="utf-8")
    assert Pipeline.load(tmp_path / PIPELINE_FILE) == pipeline


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "stage:liked",
            "stage:likes",
            "stage:likes is no earlier stage. Known: stage:task, stage:liked.",
        ),
        ("base: stage:task", "base: stage:policy", "stage policy: stage:policy is no earlier stage"),
        (
            "/models/base",
            "stage:task",
            "stage:task is no earlier stage. Known: none.",
        ),
        (
            "    base: stage:task\n",
            "",
            "online_dpo trains a model that writes text, and stage liked ends in a reward",
        ),
    ],
)
def test_a_stage_that_cannot_be_named_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in FEEDBACK
    (tmp_path / "pipeline.yaml").write_text(FEEDBACK.replace(before, after), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Pipeline.load(tmp_path / "pipeline.yaml")


def test_a_recipe_without_stages_names_none() -> None:
    objective = {"kind": "grpo", "reward": "stage:liked"}
    with pytest.raises(UserError, match=r"recipe: stage:liked is no earlier stage\. Known: none\."):
        Pipeline.load({"data": {"train": "rows.jsonl"}, "objective": objective})


def test_a_pipeline_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(STAGES, encoding="utf-8")
    pipeline = Pipeline.load(tmp_path / "pipeline.yaml")
    assert pipeline is not None
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / PIPELINE_FILE).write_text(pipeline.to_yaml(), encoding="utf-8")
    again = Pipeline.load(tmp_path / "again" / PIPELINE_FILE)
    assert again == pipeline
    assert again is not None
    is_set = ["max_length" in recipe.data.model_fields_set for recipe in again.recipes]
    assert is_set == [False, True, True]  # a default that depends on the base stays unset
    written = read_yaml(tmp_path / "again" / PIPELINE_FILE)
    assert list(written) == ["stages"]
    assert [stage["base"]["path"] for stage in written["stages"]] == ["/models/base", "stage:first", "stage:stage2"]


def test_relative_paths_in_a_dict_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    pipeline = Pipeline.load({"data": {"train": "rows.jsonl"}, "stages": [{"train": {"steps": 2}}]})
    assert pipeline is not None
    assert pipeline.recipes[0].data.train == [str(tmp_path / "rows.jsonl")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, r"recipe: stages must be a list of recipes, each with a name\."),
        ({"stages": {"name": "a"}}, "stages must be a list of recipes"),
        ({"stages": ["a"]}, "stages must be a list of recipes"),
        ({"method": "full", "zmethod": 1, "ymethod": 2}, "ymethod is not a field beside stages"),
        ({"stages": [{"name": "a b"}]}, "stage 1: name 'a b' is taken, or is not of letters"),
        ({"stages": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "stage 3: name 'a' is taken"),
        ({"stages": [{"name": "stage2"}, {}]}, "stage 2: name 'stage2' is taken"),
        ({"stages": [{"data": {"train": "x", "folds": 3}}]}, r"stage stage1: data\.folds needs a recipe without"),
        ({"data": {"train": "x", "folds": 3}}, r"stage a: data\.folds needs a recipe without stages"),
        ({"stages": [{"name": "a"}, {"name": "b", "train": {"step": 1}}]}, r"stage b: train\.step is not a field"),
    ],
)
def test_an_invalid_pipeline_is_refused_by_stage_and_field(changes: dict[str, Any], message: str) -> None:
    values = {"data": {"train": "rows.jsonl"}, "stages": [{"name": "a"}], **changes}
    with pytest.raises(UserError, match=message):
        Pipeline.load(values)


def test_the_first_stage_may_set_its_base(tmp_path: Path) -> None:
    pipeline = Pipeline.load({"data": {"train": "rows.jsonl"}, "stages": [{"base": "/models/own"}, {}]})
    assert pipeline is not None
    assert [recipe.base.path for recipe in pipeline.recipes] == ["/models/own", "stage:stage1"]


def test_a_single_recipe_is_not_a_pipeline_but_folds_are(tmp_path: Path) -> None:
    values = {"data": {"train": "rows.jsonl", "folds": 3}, "train": {"steps": 2}}
    one = {**values, "data": {"train": "rows.jsonl"}}
    one_fold = {**values, "data": {"train": "rows.jsonl", "folds": 3, "fold": 2}}
    (tmp_path / "one.yaml").write_text("data: {train: rows.jsonl}\n", encoding="utf-8")
    assert [Pipeline.load(source) for source in (one, one_fold, Recipe.load(one), tmp_path / "one.yaml")] == [None] * 4
    pipeline = Pipeline.load(values, ["train.seed=4"])
    assert pipeline is not None
    assert pipeline.folded is not None
    assert pipeline.names == ("fold1", "fold2", "fold3", "whole")
    assert [recipe.data.fold for recipe in pipeline.recipes] == [1, 2, 3, None]
    assert {(recipe.data.folds, recipe.train.seed) for recipe in (*pipeline.recipes, pipeline.folded)} == {(3, 4)}
    (tmp_path / "folds.yaml").write_text(pipeline.to_yaml(), encoding="utf-8")
    assert Pipeline.load(tmp_path / "folds.yaml") == pipeline
    from_recipe = Pipeline.load(Recipe.load(values), ["train.seed=4"])
    assert from_recipe == pipeline


# The base of a stage


@pytest.fixture(scope="module")
def two_stages(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A LoRA adapter of the base, and a recipe of two stages that starts from it."""
    directory = tmp_path_factory.mktemp("adapters")
    rows = directory / "rows.jsonl"
    lines = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(12)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    common = {
        "data": {"train": str(rows), "held_out": 0.0, "cache": False},
        "train": {"steps": 1, "tokens_per_step": 64, "precision": "fp32", "learning_rate": 3e-2},
    }
    made = train({**common, "base": str(tiny_model), "method": {"kind": "lora", "rank": 2}}, directory / "made")
    assert made.output is not None
    base = {"path": str(tiny_model), "adapter": str(made.output)}
    pipeline = {**common, "base": base, "stages": [{"method": {"kind": "lora", "rank": 2}}, {"method": "full"}]}
    return directory, pipeline, rows


def test_a_stage_after_a_merge_does_not_keep_the_adapter_of_the_base(
    two_stages: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    _, pipeline, _ = two_stages
    last = train(pipeline, tmp_path / "pipeline")
    before = Run.open(tmp_path / "pipeline" / "1-stage1")
    base = Recipe.load(last.directory / "recipe.yaml").base
    assert (base.path, base.adapter) == (str(before.directory / "merged"), None)
    assert last.output is not None
    merged = load_file(before.directory / "merged" / "model.safetensors")
    trained = load_file(last.output / "model.safetensors")
    for name, tensor in merged.items():  # at most one step of 0.03 from its start
        assert (trained[name] - tensor).abs().max() <= 0.0301, name
    assert resolve_run(tmp_path / "pipeline") == last.directory


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"method": {"kind": "lora", "rank": 2}}, "adapter"),
        ({"method": {"kind": "lora", "rank": 3}}, "merged"),
        (
            {"method": {"kind": "lora", "rank": 2}, "objective": {"kind": "classification", "labels": ["a", "b"]}},
            "merged",
        ),
    ],
)
def test_an_adapter_continues_with_the_same_method_and_head_and_else_is_merged(
    two_stages: tuple[Path, dict[str, Any], Path], changes: dict[str, Any], start: str
) -> None:
    directory, pipeline, rows = two_stages
    before = Run.open(directory / "made")
    base = {"path": "/elsewhere", "from_scratch": True}
    recipe = Recipe.load({"base": base, "data": {"train": str(rows)}, "train": {"steps": 9}, **changes})
    stage = from_weights_of(before, recipe)
    assert stage.train.steps == 9
    assert stage.method == recipe.method
    if start == "adapter":
        assert (stage.base.path, stage.base.adapter) == (pipeline["base"]["path"], before.output)
    else:
        assert (stage.base.path, stage.base.adapter) == (str(before.directory / "merged"), None)
        assert (before.directory / "merged" / "model.safetensors").exists()
    assert not stage.base.from_scratch


def test_a_saved_model_is_continued_by_its_run_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = Recipe.load({"base": {"path": "x", "from_scratch": True}, "data": {"train": "r"}, "method": "full"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    stage = from_weights_of(Run(tmp_path), recipe)
    assert (stage.base.path, stage.base.from_scratch, stage.base.adapter) == (str(tmp_path), False, None)


def test_a_pipeline_whose_first_stage_is_refused_leaves_no_directory(tmp_path: Path, tiny_model: Path) -> None:
    pipeline = {
        "base": str(tiny_model),
        "data": {"train": str(tmp_path / "none.jsonl")},
        "stages": [{"train": {"steps": 1}}, {"train": {"steps": 1}}],
    }
    with pytest.raises(UserError, match=r"none\.jsonl"):
        train(pipeline, tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


# The directory of a pipeline


def make_runs(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "recipe.yaml").write_text("", encoding="utf-8")


def test_stages_are_ordered_by_number_and_the_last_started_one_is_opened(tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    make_runs(directory, "10-j", "9-i-i", "2-b", "1-a")
    (directory / "11-not-started").mkdir()
    assert last_stage(directory) == directory  # without a pipeline file
    (directory / PIPELINE_FILE).write_text("stages: [{}, {}, {}, {}]\n", encoding="utf-8")
    assert last_stage(directory) == directory / "10-j"
    assert Run.open(directory).directory == directory / "10-j"
    assert Run.open(directory).pipeline_directory == directory
    assert Run.open(directory / "2-b").stages == [directory / name for name in ("1-a", "2-b", "9-i-i", "10-j")]
    assert resolve_run(directory) == directory / "10-j"
    assert Run(tmp_path / "alone").pipeline_directory == tmp_path / "alone"
    assert Run(tmp_path / "alone").stages == [tmp_path / "alone"]


@pytest.mark.parametrize(("text", "runs"), [("stages: [{}, {}, {}]\n", 3), ("data: {train: x, folds: 4}\n", 5)])
def test_a_pipeline_with_stages_that_have_not_started_is_not_used(tmp_path: Path, text: str, runs: int) -> None:
    make_runs(tmp_path, "1-a", "2-b")
    (tmp_path / PIPELINE_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"is not finished: 2 of its {runs} runs have started\. Resume it: tunesmith train --res"
    ):
        resolve_run(tmp_path)
    make_runs(tmp_path, *(f"{number}-x" for number in range(3, runs + 1)))
    assert resolve_run(tmp_path) == tmp_path / f"{runs}-x"


def test_the_directory_of_an_empty_pipeline_is_its_own_last_stage(tmp_path: Path) -> None:
    (tmp_path / PIPELINE_FILE).write_text("stages: [{}]\n", encoding="utf-8")
    assert last_stage(tmp_path) == tmp_path
    with pytest.raises(UserError, match=r"is not a run: it has no recipe\.yaml"):
        Run.open(tmp_path)


# The directory of a run


def made_directory(*arguments: Any) -> Path:
    with new_directory(*arguments) as path:
        return path


def test_a_runs_default_name_has_its_time_base_and_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = made_directory(None, "/models/My_Base 1.5B/", "lora")
    assert path.parent == tmp_path / "runs"
    stamp, rest = path.name[:15], path.name[15:]
    assert stamp[:8].isdigit()
    assert rest == "-my-base-1.5b-lora"


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert made_directory(tmp_path / "empty", "b", "m") == tmp_path / "empty"
    make_runs(tmp_path, "run")
    with pytest.raises(UserError, match=r"run already contains a run\. Resume it: tunesmith train --resume"):
        made_directory(tmp_path / "run", "b", "m")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / PIPELINE_FILE).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="pipeline already contains a run"):
        made_directory(tmp_path / "pipeline", "b", "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("", encoding="utf-8")
    for name in ("other", "other/x"):
        with pytest.raises(UserError, match="exists and is not an empty directory"):
            made_directory(tmp_path / name, "b", "m")
    (tmp_path / "empty" / LOCK_FILE).touch()  # a killed process left it
    assert made_directory(tmp_path / "empty", "b", "m") == tmp_path / "empty"
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        made_directory(tmp_path / "other" / "x" / "deeper", "b", "m")


def test_a_run_writes_its_recipe_and_is_finished_once_its_output_exists(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a" / "run", "base: x\n", "x", "lora") as run:
        pass
    assert (run.directory / "recipe.yaml").read_text(encoding="utf-8") == "base: x\n"
    assert (run.directory / "recipe.yaml").stat().st_mode & 0o777 == 0o644
    assert (run.finished, run.output, run.events()) == (False, None, [])
    (run.directory / "model").mkdir()
    assert (run.finished, run.output) == (True, run.directory / "model")
    (run.directory / "adapter").mkdir()
    assert run.output == run.directory / "adapter"


def test_events_are_read_line_by_line_and_a_truncated_line_is_ignored(tmp_path: Path) -> None:
    run = Run(tmp_path)
    received: list[dict[str, Any]] = []
    events = Events(received.append)
    events.subscribe(MetricsFile(tmp_path / "metrics.jsonl"))
    events.emit("step", step=1, loss=math.nan)
    events.emit("warning", message="ü\u2028x")
    size = (tmp_path / "metrics.jsonl").stat().st_size
    events.emit("end", seconds=(1.5, math.inf, {"a": [-math.inf]}))
    first = [{"event": "step", "step": 1, "loss": "nan"}, {"event": "warning", "message": "ü\u2028x"}]
    assert run.events() == [*first, {"event": "end", "seconds": [1.5, "inf", {"a": ["-inf"]}]}]
    assert [event["event"] for event in received] == ["step", "warning", "end"]
    assert "ü" in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    full_size = (tmp_path / "metrics.jsonl").stat().st_size
    run.rewind(full_size + 100)
    assert (tmp_path / "metrics.jsonl").stat().st_size == full_size
    run.rewind(full_size - 4)
    assert run.events() == first
    run.rewind(size)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert run.events() == first
    Run(tmp_path / "none").rewind(3)


def test_values_that_json_cannot_express_are_written_as_strings(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf,)], "c": {"d": "x", "e": None, "f": 3}}
    expected = {"a": "nan", "b": [1.5, "-inf", ["inf"]], "c": {"d": "x", "e": None, "f": 3}}
    assert jsonable(value) == expected
    Run(tmp_path).write_json("values.json", value)
    assert json.loads((tmp_path / "values.json").read_text(encoding="utf-8")) == expected


def test_a_file_is_written_atomically(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with atomic_write(file) as out:
        out.write("one")
        assert not file.exists()
    assert file.stat().st_mode & 0o777 == 0o644

    def broken(write: Callable[[Any], None]) -> None:
        with atomic_write(file) as out:
            write(out)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken(lambda out: out.write("two"))
    assert file.read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with atomic_write(file, "wb") as out:
        out.write(torch.tensor([7], dtype=torch.uint8).numpy().tobytes())
    assert file.read_bytes() == b"\x07"
