"""Code of users: beside a recipe as `module:Class`, and from an installed package by entry point. A run that used some
resumes, evaluates and merges by importing it again, and says clearly when it cannot."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith.config.extensions import Registry
from tunesmith.config.registry import FORMATS, HEADS, METHODS, OBJECTIVES
from tunesmith.errors import UserError
from tunesmith.evaluation.metrics import INSTALLED, METRICS, metric_named

LOSSES = '''
from halves import HALF
from tunesmith.objectives.instruction import Instruction
from tunesmith.objectives.next_token import NextTokenLoss

class HalfLoss(NextTokenLoss):
    def __init__(self, share):
        super().__init__(0.0, 0.0)
        self.share = share

    def loss(self, model, batch):
        return HALF * self.share * super().loss(model, batch)

class Half(Instruction):
    """Half of the loss, times a share."""

    share: float = 1.0

    def build(self, references=()):
        return HalfLoss(self.share)

class NotOne:
    pass
'''

METHOD = '''
from tunesmith import MethodConfig

class Norms(MethodConfig):
    """Trains the norms' weights only."""

    kind: str = "norms"
    formula = "g"
    choose = "Never."
    adds_weights = False

    def apply(self, model, seed):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return model

    def learning_rate(self, parameters):
        return 1e-2

    def trained_parameters(self, model):
        return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
'''


@pytest.fixture(autouse=True)
def nothing_imported() -> Iterator[None]:
    """Each test imports its own modules, and leaves none."""
    names = (
        "mylosses",
        "halves",
        "mymethods",
        "their_package",
        "mypackage",
        "myheads",
        "myformats",
        "mymetrics",
        "broken",
    )

    def forget() -> None:
        for name in [each for each in sys.modules if each.partition(".")[0] in names]:
            del sys.modules[name]
        for registry in (METHODS, OBJECTIVES, HEADS, FORMATS, INSTALLED):
            vars(registry).pop("_kinds", None)

    forget()
    yield
    forget()


@pytest.fixture
def recipe(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe in a directory with code beside it; the working directory is another."""
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "mylosses.py").write_text(LOSSES)
    (beside / "halves.py").write_text("HALF = 0.5\n")
    (beside / "mymethods.py").write_text(METHOD)
    values = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.2},
        "objective": {"kind": "mylosses:Half", "share": 0.25},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 4, "tokens_per_step": 300, "learning_rate": 1e-2, "precision": "fp32"},
    }
    path = beside / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in tunesmith.Run(run).events() if event["event"] == "step"]


def test_an_objective_beside_the_recipe_trains_by_its_formula(recipe: Path, tmp_path: Path) -> None:
    values = json.loads(recipe.read_text())
    usual = tunesmith.train({**values, "objective": "instruction"}, tmp_path / "usual", ["train.steps=1"])
    run = tunesmith.train(recipe, tmp_path / "own", ["train.steps=1"])
    assert steps_of(run.directory)[0]["loss"] == pytest.approx(steps_of(usual.directory)[0]["loss"] / 8)
    start = run.events()[0]
    assert start["objective"] == "mylosses:Half"
    files = [str(recipe.parent / name) for name in ("mylosses.py", "halves.py")]
    assert sorted(start["extensions"]["mylosses:Half"]) == sorted(files)


def test_the_run_keeps_the_code_and_is_evaluated_and_merged_without_the_original(recipe: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "run").directory
    assert (run / "mylosses.py").read_text() == LOSSES
    assert (run / "halves.py").exists()
    assert not (run / "mymethods.py").exists(), "not imported by the objective"
    for file in recipe.parent.glob("*.py"):
        file.unlink()
    result = tunesmith.evaluate(run, rows=2, max_new_tokens=2)
    assert result["tuned"]["loss"] < result["base"]["loss"]
    assert Path(sys.modules["mylosses"].__file__ or "").parent == run
    merged = tunesmith.merge(str(run), tmp_path / "merged").path
    assert tunesmith.load(str(merged)).generate("Hi", max_new_tokens=2)


def test_a_resumed_run_uses_the_code_that_it_started_with(recipe: Path, tmp_path: Path) -> None:
    expected = load_file(tunesmith.train(recipe, tmp_path / "whole").directory / "adapter/adapter_model.safetensors")
    with tunesmith.Trainer(recipe, tmp_path / "run") as trainer:
        trainer.step()
        trainer.checkpoint()
    (recipe.parent / "halves.py").write_text("HALF = 100.0\n")
    resumed = tunesmith.resume(tmp_path / "run").directory
    weights = load_file(resumed / "adapter/adapter_model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_change_of_the_code_invalidates_the_cached_tokens(recipe: Path, tmp_path: Path) -> None:
    def cached(name: str) -> bool:
        run = tunesmith.train(recipe, tmp_path / name, ["train.steps=1"])
        return bool(next(event for event in run.events() if event["event"] == "data")["cached"])

    assert [cached("one"), cached("two")] == [False, True]
    (recipe.parent / "halves.py").write_text("HALF = 0.25\n")
    assert not cached("three")


def test_a_method_beside_the_recipe_trains_exactly_its_weights(recipe: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "run", ["method={kind: 'mymethods:Norms'}", "objective=instruction"])
    start = run.events()[0]
    assert start["trained_parameters"] == 5 * 32
    assert run.output == tmp_path / "run" / "model"


def test_a_package_beside_the_recipe_is_copied_with_its_modules(recipe: Path, tmp_path: Path) -> None:
    package = recipe.parent / "mypackage"
    (package / "inner").mkdir(parents=True)
    for file in (package / "__init__.py", package / "inner" / "__init__.py", package / "unused.py"):
        file.touch()
    (package / "inner" / "halves.py").write_text("HALF = 0.5\n")
    (package / "focal.py").write_text(LOSSES.replace("from halves", "from .inner.halves"))
    overrides = ["objective.kind='mypackage.focal:Half'", "train.steps=1"]
    run = tunesmith.train(recipe, tmp_path / "run", overrides).directory
    copied = sorted(str(path.relative_to(run)) for path in run.rglob("*.py"))
    names = ("__init__.py", "focal.py", "inner/__init__.py", "inner/halves.py")
    assert copied == [f"mypackage/{name}" for name in names]
    assert tunesmith.Recipe.load(run / "recipe.yaml").objective.kind == "mypackage.focal:Half"
    assert Path(sys.modules["mypackage.inner.halves"].__file__ or "").is_relative_to(run)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere:Half", r"objective: nowhere:Half cannot be imported: nowhere is neither in .*beside nor installed"),
        ("mylosses:Whole", r"mylosses.py has no Whole"),
        ("mylosses:NotOne", r"mylosses:NotOne does not extend tunesmith.config.registry.ObjectiveConfig"),
        ("broken:Half", r"broken:Half cannot be imported: ZeroDivisionError: division by zero"),
        ("my losses:Half", r"my losses:Half is not of the form module:Class"),
        ("json:Half", r"json.py has the name of an installed module, json. Give it another name"),
        ("needs:Half", r"needs:Half cannot be imported: it needs not_there, which is not installed"),
    ],
)
def test_code_that_cannot_be_used_is_refused_in_one_line(recipe: Path, kind: str, message: str) -> None:
    (recipe.parent / "broken.py").write_text("1 / 0\n")
    (recipe.parent / "json.py").write_text("Half = 1\n")
    (recipe.parent / "needs.py").write_text("import not_there\n")
    with pytest.raises(UserError, match=message) as caught:
        tunesmith.Recipe.load(recipe, [f"objective={{kind: '{kind}'}}"])
    assert "\n" not in str(caught.value)


def test_an_unknown_field_of_ones_own_class_is_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.shar is not a field"):
        tunesmith.Recipe.load(recipe, ["objective.shar=1"])


def test_only_the_recipes_directory_and_installed_code_are_searched(recipe: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = elsewhere / "recipe.yaml"
    other.write_text(recipe.read_text())
    with pytest.raises(UserError, match=r"is neither in .*elsewhere nor installed"):
        tunesmith.Recipe.load(other)


def test_two_recipes_with_modules_of_the_same_name_keep_their_own_code(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    other.mkdir()
    (other / "mylosses.py").write_text(LOSSES)
    (other / "halves.py").write_text("HALF = 50.0\n")
    (other / "recipe.yaml").write_text(recipe.read_text())
    first, second = tunesmith.Recipe.load(recipe), tunesmith.Recipe.load(other / "recipe.yaml")
    losses = []
    for number, each in enumerate((first, second, first)):
        run = tunesmith.train(each, tmp_path / f"run{number}", ["train.steps=1"])
        losses.append(steps_of(run.directory)[0]["loss"])
        assert (run.directory / "halves.py").read_text() == f"HALF = {(0.5, 50.0, 0.5)[number]}\n"
    assert losses[1] == pytest.approx(100 * losses[0])
    assert losses[2] == losses[0]
    (other / "mylosses.py").unlink()
    with pytest.raises(UserError, match=r"is neither in .*second nor installed"):
        tunesmith.Recipe.load(other / "recipe.yaml")


def test_code_is_executed_once_though_another_recipe_has_a_module_of_that_name(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    other.mkdir()
    (other / "mylosses.py").write_text(LOSSES + "open(__file__ + '.log', 'a').write('x')\n")
    (other / "halves.py").write_text("HALF = 1.0\n")
    (other / "recipe.yaml").write_text(recipe.read_text())
    tunesmith.Recipe.load(recipe)
    for _ in range(3):
        tunesmith.Recipe.load(other / "recipe.yaml")
    assert (other / "mylosses.py.log").read_text() == "x"


def test_a_helper_that_two_modules_share_is_copied_with_each(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mymethods.py").write_text("import halves\n" + METHOD)
    for number, override in enumerate(("method=lora", "method={kind: 'mymethods:Norms'}")):
        objective = [] if number == 0 else ["objective=instruction"]
        run = tunesmith.train(recipe, tmp_path / f"run{number}", [override, "train.steps=1", *objective]).directory
        assert (run / "halves.py").exists()


def test_after_a_failed_import_the_corrected_files_are_read(recipe: Path) -> None:
    (recipe.parent / "halves.py").write_text("HALF = 7.0\n")
    (recipe.parent / "mylosses.py").write_text(LOSSES + "\n1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        tunesmith.Recipe.load(recipe)
    (recipe.parent / "halves.py").write_text("HALF = 0.5\n")
    (recipe.parent / "mylosses.py").write_text(LOSSES)
    tunesmith.Recipe.load(recipe)
    assert sys.modules["halves"].HALF == 0.5


def test_a_package_with_the_name_of_a_directory_of_runs_is_refused(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "model").mkdir()
    (recipe.parent / "model" / "__init__.py").write_text(LOSSES)
    with pytest.raises(UserError, match="a run has a directory model, so a package cannot"):
        tunesmith.train(recipe, tmp_path / "run", ["objective.kind='model:Half'"])
    assert not (tmp_path / "run").exists()


HEAD = """
from dataclasses import dataclass
from pathlib import Path
from tunesmith import Prediction
from tunesmith.heads.sequence_classification import RegressionHead
from tunesmith.objectives.regression import Regression

Path(__file__).with_name("executed").touch()

@dataclass(frozen=True)
class PointsHead(RegressionHead):
    kind = "myheads:PointsHead"

    def predictions(self, output):
        return [Prediction("points", float(output[0]))]

@dataclass(frozen=True)
class Nameless(RegressionHead):
    pass

class Points(Regression):
    @property
    def head(self):
        return PointsHead()

class Unnamed(Regression):
    @property
    def head(self):
        return Nameless()
"""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_head_of_ones_own_predicts_from_its_run_and_runs_no_code_elsewhere(
    recipe: Path, tmp_path: Path, method: str
) -> None:
    (recipe.parent / "myheads.py").write_text(HEAD)
    rows = tmp_path / "scores.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a{n}", "score": n}) + "\n" for n in range(20)))
    overrides = [f"data.train={rows}", f"method={method}", "train.steps=1"]
    run = tunesmith.train(recipe, tmp_path / "run", [*overrides, "objective={kind: 'myheads:Points'}"])
    assert tunesmith.classify(str(run.directory), "a3")[0][0].label == "points"
    with pytest.raises(UserError, match=r"Set kind = 'myheads:Nameless' in its class"):
        tunesmith.Recipe.load(recipe, [*overrides, "objective={kind: 'myheads:Unnamed'}"])
    assert run.output is not None
    moved = tmp_path / "moved"
    run.output.rename(moved)
    (moved / "myheads.py").write_text(HEAD)
    for name in [each for each in sys.modules if each == "myheads"]:
        del sys.modules[name]
    with pytest.raises(UserError, match="myheads:PointsHead cannot be imported: myheads is not installed"):
        tunesmith.load(str(moved))
    assert not (moved / "executed").exists()


# An installed package


def install(directory: Path) -> Path:
    """A package outside of the tree, as pip lays it out, with entry points."""
    package = directory / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "losses.py").write_text(LOSSES.replace("from halves import HALF", "HALF = 0.5"))
    (package / "methods.py").write_text(METHOD)
    (package / "metrics.py").write_text(
        "def same_length(answer, expected):\n    return float(len(answer) == len(expected))\n"
    )
    info = directory / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tunesmith.objectives]\nhalf = their_package.losses:Half\n"
        "[tunesmith.methods]\nnorms = their_package.methods:Norms\n"
        "[tunesmith.metrics]\nsame_length = their_package.metrics:same_length\n"
    )
    return directory


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_an_installed_package_registers_an_objective_a_method_and_a_metric(recipe: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "run", ["objective.kind=half", "method={kind: norms}", "train.steps=2"])
    start = run.events()[0]
    assert (start["objective"], start["method"], start["trained_parameters"]) == ("half", "norms", 5 * 32)
    assert start["extensions"] == {"norms": [], "half": []}, "installed code is not copied"
    metrics = {**METRICS, "same_length": metric_named("same_length")}
    result = tunesmith.evaluate(run.directory, rows=3, max_new_tokens=2, metrics=metrics)
    assert result["tuned"]["metrics"]["same_length"]["value"] == 0
    assert "norms" in [
        method["kind"] for method in tunesmith.list_methods(str(tunesmith.Recipe.load(recipe).base.path))["methods"]
    ]
    schema = json.dumps(tunesmith.recipe_schema())
    assert '"half"' in schema
    assert '"norms"' in schema


def test_a_package_cannot_replace_our_own_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("tunesmith.objectives", {"half": "tunesmith.objectives.instruction:Instruction"})
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    assert registry.load("half").__name__ == "Instruction"
    assert not registry.is_users("half")


RUN = """
import sys, tunesmith
recipe, run, resume = sys.argv[1:]
if resume == "resume":
    assert tunesmith.resume(run).finished
else:
    import os, signal
    def kill(event):
        if event["event"] == "checkpoint" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    tunesmith.train(recipe, run, ["objective.kind=half", "train.checkpoint_every=1"], [kill])
"""


@pytest.mark.long
def test_a_killed_run_of_an_installed_objective_resumes_in_a_new_process(recipe: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(install(tmp_path / "site")), *sys.path])}

    def start(how: str) -> int:
        command = [sys.executable, "-c", RUN, str(recipe), str(tmp_path / "run"), how]
        return subprocess.run(command, env=environment, timeout=200).returncode

    assert start("new") == -signal.SIGKILL
    assert start("resume") == 0
    assert [event["step"] for event in steps_of(tmp_path / "run")] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="kind 'half' is not known"):
        tunesmith.evaluate(tmp_path / "run")


# Formats and metrics


def test_a_format_of_ones_own_reads_the_rows(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "myformats.py").write_text(
        "from tunesmith import RowFormat\n"
        "def read(values):\n"
        "    return {'messages': ({'role': 'user', 'content': values['term']},\n"
        "                         {'role': 'assistant', 'content': values['meaning']})}\n"
        "TERMS = RowFormat('terms', (('term', 'meaning'),), (), read)\n"
        "NOT_ONE = 3\n"
    )
    rows = tmp_path / "terms.jsonl"
    rows.write_text("".join(json.dumps({"term": f"t{n}", "meaning": f"m{n}"}) + "\n" for n in range(30)))
    overrides = [f"data.train={rows}", "objective=instruction", "train.steps=1"]
    run = tunesmith.train(recipe, tmp_path / "run", [*overrides, "data.format='myformats:TERMS'"])
    assert (run.directory / "myformats.py").exists()
    data = next(event for event in run.events() if event["event"] == "data")
    assert (data["rows"], data["malformed"]) == (30, 0)
    with pytest.raises(UserError, match=r"data.format: myformats:NOT_ONE is not a tunesmith.data.row_format.RowFormat"):
        tunesmith.train(recipe, tmp_path / "other", [*overrides, "data.format='myformats:NOT_ONE'"])


def test_a_metric_is_a_function_or_a_metric_by_name(tmp_path: Path) -> None:
    (tmp_path / "mymetrics.py").write_text(
        "from tunesmith import Metric\n"
        "def short_enough(answer, expected):\n"
        "    '''Answers that are short.\n\n    More.'''\n"
        "    return 1.0\n"
        "LOUD = Metric('loud', 'answers in capitals', lambda answer, expected: float(answer.isupper()))\n"
        "NUMBER = 3\n"
    )
    short = metric_named("mymetrics:short_enough", tmp_path)
    assert (short.title, short.explanation, short.score("a", "b")) == ("short enough", "Answers that are short.", 1.0)
    assert metric_named("mymetrics:LOUD", tmp_path).score("A", "") == 1
    assert metric_named("rouge_l") is METRICS["rouge_l"]
    with pytest.raises(UserError, match="neither a function"):
        metric_named("mymetrics:NUMBER", tmp_path)
    with pytest.raises(UserError, match=r"The metric loud is not known. Known: rouge_l"):
        metric_named("loud", tmp_path)
