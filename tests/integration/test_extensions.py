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
from command import typed
from safetensors.torch import load_file

import tunesmith
from tunesmith.config.registry import FORMATS, HEADS, METHODS, OBJECTIVES, Registry
from tunesmith.config.registry import METRICS as INSTALLED
from tunesmith.errors import UserError
from tunesmith.metrics import METRICS, metric_named

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
        "failing_package",
    )

    def forget() -> None:
        for name in [each for each in sys.modules if each.partition(".")[0] in names]:
            del sys.modules[name]
        for registry in (METHODS, OBJECTIVES, HEADS, FORMATS, INSTALLED):
            for name in ("_installed", "_kinds"):
                vars(registry).pop(name, None)

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


@pytest.mark.long
def test_the_run_keeps_the_code_and_is_evaluated_and_merged_without_the_original(recipe: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "run").directory
    assert (run / "mylosses.py").read_text() == LOSSES
    assert (run / "halves.py").exists()
    assert not (run / "mymethods.py").exists(), "not imported by the objective"
    for file in recipe.parent.glob("*.py"):
        file.unlink()
    result = tunesmith.evaluate(run, rows=2, max_new_tokens=2)
    assert result["models"]["tuned"]["loss"]["value"] < result["models"]["base"]["loss"]["value"]
    assert Path(sys.modules["mylosses"].__file__ or "").parent == run
    merged = tunesmith.export(run, tmp_path / "merged", "hf").path
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
        ("mylosses:NotOne", r"mylosses:NotOne does not extend tunesmith.config.objective.ObjectiveConfig"),
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


@pytest.mark.long
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


@pytest.mark.long
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
from tunesmith import Head, ObjectiveConfig, Prediction
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

@dataclass(frozen=True)
class BareHead(Head):
    kind = "myheads:BareHead"

    def model_class(self, config):
        return None

class Lacking(ObjectiveConfig):
    kind: str = "lacking"

    @property
    def head(self):
        return BareHead()

    def render(self, renderer, example):
        return []

    def build(self, references=()):
        return None

class Unnamed(Regression):
    @property
    def head(self):
        return Nameless()
"""


def test_a_method_that_a_class_lacks_is_named_in_one_line(recipe: Path) -> None:
    (recipe.parent / "mymethods.py").write_text(
        METHOD + "\n    @property\n    def top_blocks(self):\n        return 1\n"
    )
    (recipe.parent / "myheads.py").write_text(HEAD)
    loaded = tunesmith.Recipe.load(recipe, ["method={kind: 'mymethods:Norms'}", "objective={kind: 'myheads:Lacking'}"])
    needed: list[Callable[[], object]] = [
        lambda: loaded.method.with_top_blocks(2),
        lambda: loaded.objective.head_learning_rate_at(32),
        lambda: loaded.objective.head.predict(None, None, "text"),
    ]
    names = (
        "mymethods:Norms has no method with_top_blocks",
        "head_learning_rate_at",
        "myheads:BareHead has no .* predict",
    )
    for call, message in zip(needed, names, strict=True):
        with pytest.raises(UserError, match=message):
            call()


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


# Code that fails


FAILING = LOSSES.replace(
    "        return HALF",
    "        if Path(__file__).with_name('fail').exists():\n            return {}['no such key']\n        return HALF",
).replace("from halves", "from pathlib import Path\nfrom halves")


def test_a_loss_that_fails_before_anything_is_trained_leaves_no_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = recipe.parent / "mylosses.py"
    file.write_text(FAILING)
    (recipe.parent / "fail").touch()
    line = 1 + FAILING.splitlines().index("            return {}['no such key']")
    done = typed("train", str(recipe), "--run", "run")
    assert done.returncode == 2
    first, *code = done.stderr.splitlines()
    assert first == f"error: mylosses:Half failed: KeyError: 'no such key' ({file}:{line}, in loss). Correct it."
    assert code[:2] == [f'  File "{file}", line {line}, in loss', "    return {}['no such key']"]
    assert "tunesmith/" not in done.stderr, "only the part of the traceback that is theirs"
    assert not (tmp_path / "run").exists()
    (recipe.parent / "fail").unlink()
    assert typed("train", str(recipe), "--run", "run").returncode == 0


@pytest.mark.long
def test_a_failure_in_a_file_that_the_named_one_imports_is_theirs_too(recipe: Path, tmp_path: Path) -> None:
    helper = recipe.parent / "halves.py"
    helper.write_text("class Half:\n    def __mul__(self, other):\n        return 1 / 0\nHALF = Half()\n")
    with pytest.raises(UserError) as caught:
        tunesmith.train(recipe, tmp_path / "run")
    first, *code = str(caught.value).splitlines()
    assert first == (f"mylosses:Half failed: ZeroDivisionError: division by zero ({helper}:3, in __mul__). Correct it.")
    assert [line.split(", ")[-1] for line in code if line.startswith("  File")] == ["in loss", "in __mul__"]


@pytest.mark.long
def test_a_failure_that_is_not_in_users_code_stays_what_it_is(recipe: Path, tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            raise KeyError("a subscriber")

    with pytest.raises(KeyError, match="a subscriber"):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[fail])
    assert (tmp_path / "run").exists()


def fail_after(step: int, recipe: Path) -> Callable[[dict[str, Any]], None]:
    """A subscriber that makes the loss fail from a step on."""
    (recipe.parent / "mylosses.py").write_text(FAILING)

    def subscriber(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            (recipe.parent / "fail").touch()

    return subscriber


def test_a_loss_that_fails_later_keeps_a_run_that_resumes_with_the_corrected_code(recipe: Path, tmp_path: Path) -> None:
    run, subscriber = tmp_path / "run", fail_after(3, recipe)
    with pytest.raises(UserError, match="mylosses:Half failed: KeyError") as caught:
        tunesmith.train(recipe, run, ["train.checkpoint_every=2"], [subscriber])
    assert isinstance(caught.value.__cause__, KeyError)
    last = str(caught.value).splitlines()[-1]
    assert last == (
        f"{run} is kept, with its own copy of the code that was beside the recipe. Correct it there, then continue "
        f"after step 2: tunesmith train --resume {run}"
    )
    assert tunesmith.Run(run).events()[-1]["reason"] == "failed"
    assert [listed.state for listed in tunesmith.list_runs(tmp_path)] == ["interrupted"]
    (run / "mylosses.py").write_text(LOSSES.replace("HALF *", "1 / 0 *"))  # no correction yet
    with pytest.raises(UserError, match=r"ZeroDivisionError[\s\S]*continue after step 2"):
        tunesmith.resume(run)
    (run / "mylosses.py").write_text(LOSSES)
    assert tunesmith.resume(run).finished
    assert [event["step"] for event in steps_of(run)] == [1, 2, 3, 4]
    assert len(json.loads((run / "provenance.json").read_text())["corrected_extensions"]) == 2


@pytest.mark.long
def test_code_that_failed_in_a_loop_of_ones_own_may_be_corrected(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (recipe.parent / "mylosses.py").write_text(FAILING)
    with tunesmith.Trainer(recipe, run) as trainer:
        trainer.step()
        trainer.checkpoint()
        (recipe.parent / "fail").touch()
        for call in (trainer.step, lambda: trainer.forward_backward([0])):
            with pytest.raises(UserError, match="mylosses:Half failed: KeyError"):
                call()
    (run / "mylosses.py").write_text(LOSSES)
    with tunesmith.Trainer.resume(run) as trainer:
        assert trainer.steps == (1, 4)


def test_code_of_a_run_that_did_not_fail_may_not_change(recipe: Path, tmp_path: Path) -> None:
    with tunesmith.Trainer(recipe, tmp_path / "run") as trainer:
        trainer.step()
        trainer.checkpoint()
    (tmp_path / "run" / "halves.py").write_text("HALF = 0.25\n")
    with pytest.raises(UserError, match="The code of mylosses:Half has changed"):
        tunesmith.resume(tmp_path / "run")


@pytest.mark.long
def test_a_resumed_run_is_kept_when_its_code_fails_at_once_and_may_be_corrected(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (recipe.parent / "mylosses.py").write_text(FAILING)
    with tunesmith.Trainer(recipe, run):
        pass
    (run / "fail").touch()
    with pytest.raises(UserError, match="mylosses:Half failed"):
        tunesmith.resume(run)
    (run / "mylosses.py").write_text(LOSSES)
    assert tunesmith.resume(run).finished


@pytest.mark.long
def test_a_later_stage_that_fails_at_once_is_started_again(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mylosses.py").write_text(FAILING)
    values = json.loads(recipe.read_text()) | {"stages": [{"name": "one"}, {"name": "two"}]}
    recipe.write_text(json.dumps(values))
    pipeline = tmp_path / "pipeline"

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "end" and event["run" if "run" in event else "event"] == "end":
            (recipe.parent / "fail").touch()

    with pytest.raises(UserError, match="mylosses:Half failed"):
        tunesmith.train(recipe, pipeline, ["train.steps=1"], [fail])
    assert not (pipeline / "2-two").exists()
    assert tunesmith.resume(pipeline).directory == pipeline / "2-two"


def test_the_row_at_which_code_of_ones_own_fails_is_named(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mylosses.py").write_text(
        LOSSES + "\n    def render(self, renderer, example):\n"
        "        return super().render(renderer, example) if example.source.row < 7 else [][0]\n"
    )
    (recipe.parent / "myformats.py").write_text(
        "from tunesmith import RowFormat\nfrom tunesmith.data.row_format import nonempty_text\n"
        "def read(values):\n    return {'text': 1 / 0 if values['question'] == 'What is 4 + 4?' else "
        "nonempty_text(values, 'question')}\n"
        "QUESTIONS = RowFormat('questions', (('question',),), (), read)\n"
    )
    losses = LOSSES.replace("class NotOne:", "class NotOne:", 1)
    with pytest.raises(
        UserError, match=r"rows.jsonl row 5: data.format: myformats:QUESTIONS failed: ZeroDivisionError"
    ):
        tunesmith.train(recipe, tmp_path / "run", ["data.format='myformats:QUESTIONS'", "objective=text"])
    (recipe.parent / "mylosses.py").write_text(
        losses.replace(
            "    def build(",
            "    def render(self, renderer, example):\n"
            "        return super().render(renderer, example) if example.source.row < 7 else [][0]\n\n    def build(",
        )
    )
    with pytest.raises(UserError, match=r"rows.jsonl row 7: mylosses:Half failed: IndexError: list index out of range"):
        tunesmith.train(recipe, tmp_path / "run")
    shown = typed("data", "show", str(recipe), "--start", "7")
    assert (shown.returncode, "rows.jsonl row 7: mylosses:Half failed" in shown.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_plan_names_the_line_of_ones_own_code_that_it_cannot_simulate(recipe: Path) -> None:
    file = recipe.parent / "mylosses.py"
    for failure, message in (
        ("{}['no such key']", r"^mylosses:Half failed: KeyError: 'no such key' \(.*mylosses.py:12, in loss\)"),
        ("[] + 1", r"cannot be predicted, .*\(can only concatenate list .*; .*mylosses.py:12, in loss\)"),
    ):
        file.write_text(LOSSES.replace("        return HALF", f"        {failure}\n        return HALF"))
        with pytest.raises(UserError, match=message):
            tunesmith.plan(recipe=recipe)


def test_a_metric_and_a_head_that_fail_are_named(recipe: Path, tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "run", ["objective=instruction", "train.steps=1"]).directory
    (tmp_path / "mymetrics.py").write_text("def worst(answer, expected):\n    return 1 / 0\n")
    worst = metric_named("mymetrics:worst", tmp_path)
    with pytest.raises(UserError, match=r"The metric worst failed: ZeroDivisionError: .*mymetrics.py:2, in worst"):
        tunesmith.evaluate(run, rows=2, max_new_tokens=2, metrics={"worst": worst})
    (recipe.parent / "myheads.py").write_text(HEAD.replace('"points", float(output[0])', '"points", output["no"]'))
    rows = tmp_path / "scores.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a{n}", "score": n}) + "\n" for n in range(20)))
    overrides = [f"data.train={rows}", "train.steps=1", "objective={kind: 'myheads:Points'}"]
    points = tunesmith.train(recipe, tmp_path / "points", overrides).directory
    with pytest.raises(UserError, match=r"^myheads:PointsHead failed: .*myheads.py:\d+, in predictions"):
        tunesmith.classify(points, "a3")


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
    assert result["models"]["tuned"]["same_length"]["value"] == 0
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


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose module fails, with methods that are none or that crash when they are listed."""
    package = tmp_path / "failing" / "failing_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "broken.py").write_text("import not_there\n")
    (package / "methods.py").write_text(
        METHOD.replace("return sum(", "return 1 / 0 + sum(")
        + "class Usual(Norms):\n    usual_weights = ('auto',)\n    needed: int\n"
        + "from typing import Callable\nclass Odd(Norms):\n    odd: Callable = print\n"
    )
    info = tmp_path / "failing" / "failing_package-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-package\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(
        "[tunesmith.objectives]\nbroken_objective = failing_package.broken:Half\n"
        "[tunesmith.methods]\nbroken_method = failing_package.broken:Norms\ncrashes = failing_package.methods:Norms\n"
        "usual = failing_package.methods:Usual\nno_class = failing_package.methods:METHOD\n"
        "odd = failing_package.methods:Odd\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "failing")
    importlib.invalidate_caches()


BROKEN = (
    "tunesmith.methods: broken_method is left out: failing_package.broken:Norms cannot be imported: it needs "
    "not_there, which is not installed. The package failing-package 2.0 registers it as broken_method: update or "
    "uninstall it."
)


@pytest.mark.usefixtures("failing")
def test_a_broken_package_is_named_in_one_line_and_left_out_of_all_lists(tiny_model: Path) -> None:
    listed, schema = typed("methods", "--base", str(tiny_model), "--json"), typed("schema")
    plan = typed("plan", str(tiny_model), "--device", "rtx-4090", "--json")
    assert (listed.returncode, schema.returncode, plan.returncode) == (0, 0, 0)
    for done in (listed, schema, plan):
        assert done.stderr.count(BROKEN) == 1
        assert "Traceback" not in done.stderr
    kinds = [method["kind"] for method in json.loads(listed.stdout)["methods"]]
    assert kinds == [kind for kind in METHODS.own if kind != "peft"]
    assert "crashes is left out: ZeroDivisionError: division by zero. The package failing-package 2.0" in listed.stderr
    mapped = json.loads(schema.stdout)["properties"]["method"]["discriminator"]["mapping"]
    assert set(mapped) == {*METHODS.own, "crashes", "usual"}, "no JSON schema of odd"
    assert "tunesmith.objectives: broken_objective is left out" in schema.stderr
    assert "usual is left out: it has no default for needed, so it needs a recipe.\n" in listed.stderr
    assert "lora" in json.loads(plan.stdout)


@pytest.mark.usefixtures("failing")
def test_only_a_recipe_that_names_a_broken_package_fails(recipe: Path, tmp_path: Path) -> None:
    assert tunesmith.train(recipe, tmp_path / "run", ["train.steps=1"]).finished
    message = BROKEN.partition("left out: ")[2]
    with pytest.raises(UserError, match=f"^recipe.yaml: method: {message}$"):
        tunesmith.Recipe.load(recipe, ["method=broken_method"])
    with pytest.raises(UserError, match=r"method\.rnk is not a field\. Did you mean method\.rank"):
        tunesmith.Recipe.load(recipe, ["method.rnk=3"])
    with pytest.raises(UserError, match=r"methods\.py has no METHOD"):
        tunesmith.Recipe.load(recipe, ["method=no_class"])


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
    with pytest.raises(
        UserError, match=r"^recipe.yaml: data.format: nowhere:TERMS cannot be imported: nowhere is neith"
    ):
        tunesmith.Recipe.load(recipe, ["data.format='nowhere:TERMS'"])


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
