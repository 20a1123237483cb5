"""What names stand for and how it is opened, suites and their options, rows with targets, and labels of people."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluated import recipe_in, written

from tunesmith.config.recipe import Recipe
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.evaluation.keeping import Keeping
from tunesmith.evaluation.opening import Opening, Wanted, _first_run, _rows_of, names_of
from tunesmith.evaluation.rows import EvaluationRows, spread
from tunesmith.evaluation.subjects import SubjectName, column_names, open_base, open_subject, refuse_unknown_storage
from tunesmith.evaluation.suite import SUITES, SuiteContext, measure_suite, open_suites, parsed_options, storages_of
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Run
from tunesmith.statistics.measured import mean_of
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject

# Names


@pytest.mark.parametrize("storage", ["int8", "nf4", "fp4", "bf16", "fp32", "gguf:q8_0"])
def test_what_may_follow_the_at_sign(storage: str) -> None:
    assert SubjectName.parse(f"name@{storage}") == SubjectName(f"name@{storage}", "name", storage)


def test_what_may_not_follow_the_at_sign_is_named_with_what_may() -> None:
    with pytest.raises(UserError) as refused:
        refuse_unknown_storage("--save", "int3")
    assert str(refused.value) == (
        "--save: @int3 is not one of int8, nf4, fp4, bf16, fp32, gguf:KIND. Write NAME@int8, for example."
    )
    with pytest.raises(UserError, match=r"^--save: @gguf:int8 is not one of gguf:"):
        refuse_unknown_storage("--save", "gguf:int8")


def test_a_checkpoint_is_of_the_run_two_directories_above_it(tmp_path: Path) -> None:
    run = recipe_in(tmp_path / "run", train="rows.jsonl")
    checkpoint = run / "checkpoints" / "step-000005"
    checkpoint.mkdir(parents=True)
    assert SubjectName.parse(str(checkpoint)).checkpoint is None, "it is empty"
    (checkpoint / "loop.json").touch()
    name = SubjectName.parse(str(checkpoint))
    assert (name.checkpoint, name.run, name.is_served) == (checkpoint, run, False)
    assert SubjectName.parse(str(run)).run == run
    assert SubjectName.parse(str(run)).checkpoint is None
    assert _first_run(names_of(["embedded", run])) == run
    assert _first_run(names_of("embedded")) is None
    with pytest.raises(UserError, match=r"step-000006 does not exist\. Kept: step-000005\. train\.keep_checkpoints"):
        open_subject(SubjectName.parse(str(checkpoint.with_name("step-000006"))), "x")


def test_columns_are_names_in_full_if_short_ones_are_alike() -> None:
    def columns(*texts: str) -> list[str]:
        return column_names([SubjectName.parse(text) for text in texts])

    assert columns("a/b/c", "d/b/c", "x") == ["a/b/c", "d/b/c", "x"]
    assert columns("c", "a/c") == ["c", "a/c"]
    assert columns("http://here:1/v1/#m", "http://here:1/v1#n") == ["m", "n"]
    assert columns("http://here:1/v1/#m", "https://here:1/v1#m") == ["http://here:1/v1/#m", "https://here:1/v1#m"]
    with pytest.raises(UserError, match=r"^a is given twice\. Name each model once\.$"):
        columns("b", "a", "a")


def test_a_model_is_computed_as_its_name_says_or_as_its_run_does(tiny_model: Path, tmp_path: Path) -> None:
    def opened(text: str, **options: Any) -> LocalSubject:
        subject = open_subject(SubjectName.parse(text), "column", **options)
        assert isinstance(subject, LocalSubject)
        return subject

    stored = {"": "auto", "@int8": "int8", "@nf4": "nf4", "@fp4": "fp4", "@bf16": "auto", "@fp32": "auto"}
    for storage, weights in stored.items():
        model = opened(f"{tiny_model}{storage}", device="cpu").model
        assert model.reference.base.weights == weights, storage
    assert str(opened(f"{tiny_model}@bf16", device="cpu").model.dtype) == "torch.bfloat16"
    assert str(opened(f"{tiny_model}@fp32", device="cpu").model.dtype) == "torch.float32"
    subject = opened(str(tiny_model), concurrent=3, device="cpu", keeps=False)
    assert (subject.name, subject.model.concurrent, str(subject.model.device)) == ("column", 3, "cpu")
    assert (subject.keeps, opened(str(tiny_model)).keeps) == (False, True)
    served = open_subject(SubjectName.parse("http://127.0.0.1:9/v1#m"), "far", concurrent=4)
    assert isinstance(served, ServedSubject)
    assert (served.name, served._concurrent, served.client.model) == ("far", 4, "m")


def test_a_base_is_as_the_run_began_with_its_tokenizer_and_precision(tiny_model: Path, tmp_path: Path) -> None:
    run = recipe_in(
        tmp_path / "run", base=tiny_model, train=written(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    )
    recipe = Recipe.load(run / "recipe.yaml")
    tuned = open_subject(SubjectName.parse(f"{tiny_model}@fp32"), "tuned", concurrent=3, device="cpu", keeps=False)
    assert isinstance(tuned, LocalSubject)
    base = open_base(recipe, tuned, "base", keeps=False)
    assert (base.name, base.keeps, base.model.concurrent, base.model.dtype) == ("base", False, 3, tuned.model.dtype)
    assert (base.tokenizer, base.model.device) == (tuned.tokenizer, tuned.model.device)
    assert base._objective == recipe.objective
    assert base.model.reference.head == recipe.objective.head
    assert open_base(recipe, tuned, "base").keeps


# Rows of an evaluation


def test_a_run_is_evaluated_beside_its_base_on_the_rows_that_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [{"question": str(n), "answer": "b"} for n in range(4)])
    run = recipe_in(tmp_path / "run", base=tiny_model, train=file, held_out=0.5)
    opening, names = Opening(2, "cpu", False), names_of(run)

    opening._pair = lambda directory: [directory]  # type: ignore[method-assign, assignment, list-item]
    (trial,) = opening.run(Run(run), Wanted(names, None, 3, True))
    assert trial.rows is not None
    assert (trial.rows.origin, trial.run, trial.fold, trial.subjects) == ("held-out rows of run", run, None, [run])
    (trial,) = opening.run(Run(run), Wanted(names, [file], 3, False))
    assert trial.rows is not None
    assert (trial.rows.origin, trial.rows.run, trial.run) == ("rows of rows.jsonl", run, run)
    (trial,) = opening.run(Run(run), Wanted(names, [file], 0, True))
    assert (trial.rows, trial.run) == (None, run)
    (trial,) = opening.run(Run(run), Wanted(names, [file], 0, False))
    assert trial.rows is not None, "without suites, there are losses of rows"


def test_each_fold_is_evaluated_by_its_own_model_and_suites_by_the_last(tiny_model: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [{"question": str(n), "answer": "b"} for n in range(4)])
    run = recipe_in(tmp_path / "run", base=tiny_model, train=file, folds=2)
    parts = [recipe_in(run / f"fold-{n}", base=tiny_model, train=file, folds=2, fold=n) for n in (1, 2)]
    opening = Opening(2, "cpu", False)
    opening._pair = lambda directory: [directory]  # type: ignore[method-assign, assignment, list-item]
    stages: Any = SimpleNamespace(directory=run, stages=[*parts, run])
    found = opening.run(stages, Wanted(names_of(run), None, 3, False))
    assert [(trial.fold, trial.subjects, trial.run) for trial in found] == [(1, parts[:1], None), (2, parts[1:], None)]
    assert [trial.rows.origin for trial in found if trial.rows] == [f"held-out rows of {part.name}" for part in parts]
    *folds, last = opening.run(stages, Wanted(names_of(run), None, 3, True))
    assert ([trial.fold for trial in folds], last.rows, last.subjects, last.run) == ([1, 2], None, [run], run)
    (one,) = opening.run(SimpleNamespace(directory=parts[0]), Wanted(names_of(parts[0]), None, 3, False))  # type: ignore[arg-type]
    assert (one.fold, one.run) == (None, parts[0])
    with pytest.raises(UserError, match=r"run holds every row out once \(data\.folds\)\. Evaluate it alone, or give"):
        _rows_of(Wanted(names_of([tiny_model, run]), None, 3, False))
    rows = _rows_of(Wanted(names_of([tiny_model, *parts]), None, 3, False))
    assert rows is not None
    assert rows.run == parts[0], "a fold's run has rows of its own"


def test_forms_are_of_one_model_that_is_here(tiny_model: Path) -> None:
    opening = Opening(1, "cpu", False)
    for models, which in (
        ([tiny_model, "embedded"], f"{tiny_model}, embedded"), (["embedded@int8"],) * 2, (["http://host/v1"],) * 2,
    ):  # fmt: skip
        which = which if isinstance(which, str) else which[0]
        with pytest.raises(UserError) as refused:
            opening.forms(Wanted(names_of(models), None, 0, True), ["fp32"])  # type: ignore[arg-type]
        assert str(refused.value) == (
            f"The forms of one model of this machine are compared, not {which}. Name it without @."
        )


def test_targets_of_rows_are_tasks_in_words_if_the_head_has_words_for_them() -> None:
    class Table:
        def __len__(self) -> int:
            return 2

        def targets_of(self, row: int) -> int:
            return row

        def source(self, row: int) -> str:
            return f"row {row + 1}"

    words: list[Any] = ["yes", "no"]
    head = SimpleNamespace(describe_target=lambda target: words[target])
    chat = ({"role": "user", "content": "b"},)
    examples = [
        SimpleNamespace(source="row 1", text="a", messages=None), SimpleNamespace(source="row 2", messages=chat),
    ]  # fmt: skip
    recipe = SimpleNamespace(objective=SimpleNamespace(head=head))
    rows = EvaluationRows("rows", recipe)  # type: ignore[arg-type]
    vars(rows)["examples"] = examples
    found = rows.labeled(Table())  # type: ignore[arg-type]
    assert [(task.chat, task.expected, task.source) for task in found] == [
        (({"role": "user", "content": "a"},), "yes", "row 1"), (chat, "no", "row 2"),
    ]  # fmt: skip
    words[1] = None
    assert rows.labeled(Table()) == []  # type: ignore[arg-type]


def test_rows_of_a_run_that_held_none_out_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    run = recipe_in(tmp_path / "run", base=tiny_model, train=file, held_out=0.0)
    tokenizer = open_subject(SubjectName.parse(str(tiny_model)), "x").tokenizer  # type: ignore[union-attr]
    with pytest.raises(
        UserError, match=r"run has no held-out rows to evaluate on\. Set data\.held_out, or data\.folds"
    ):
        EvaluationRows.of_run(run).prepared(tokenizer)
    whole = EvaluationRows.of_files([file], run).prepared(tokenizer)
    assert isinstance(whole.held_out, TokenTable)
    assert len(whole.held_out) == 1
    assert spread(3, 1) == [0]


# Suites


class Quick:
    """A suite of a user, with an option."""

    storages = ("fp32", "int8")

    def __init__(self, number: str = "1") -> None:
        self.number = float(number)

    def measure(self, subject: Any, context: SuiteContext) -> dict[str, Any]:
        context.leave_out("nothing", "no reason")
        return {"number": mean_of([self.number], [subject], "number", "an option", unit="")}


def test_figures_are_called_by_the_short_name_of_their_suite() -> None:
    context = SuiteContext(None, (), Sampling(1), None, lambda *_: None)
    for name, short in (("latency", "latency"), ("lm-eval", "lm-eval"), ("my.suites:Quick", "quick")):
        found = measure_suite(name, Quick("3"), "one", context)  # type: ignore[arg-type]
        assert [(key, figure.value) for key, figure in found.items()] == [(f"{short}.number", 3.0)]
    assert (context.run, context.leave_out("what", "why")) == (None, None)  # type: ignore[func-returns-value]


def test_forms_are_those_that_suites_ask_for_each_once() -> None:
    assert storages_of({}) == storages_of({"a": object()}) == ()  # type: ignore[dict-item]
    other: Any = SimpleNamespace(storages=("int8", "nf4"))
    assert storages_of({"a": Quick(), "b": object(), "c": other}) == ("fp32", "int8", "nf4")  # type: ignore[dict-item]


def test_options_of_suites_are_read_from_the_last_period_before_the_equals_sign() -> None:
    assert parsed_options(["a.b=1", " a.c =2", "m.n:Class.d=e=f.g"]) == {
        "a": {"b": "1", "c": "2"},
        "m.n:Class": {"d": "e=f.g"},
    }
    for text in ("a.b", ".b=1", "a.=1", "=1", "ab=1"):
        with pytest.raises(UserError, match=r"is not of the form suite\.option=value\.$"):
            parsed_options([text])
    assert parsed_options([]) == {}


def test_suites_are_opened_with_their_options_and_others_are_named() -> None:
    assert open_suites([]) == {}
    assert list(open_suites(["latency", "forgetting"], None)) == ["latency", "forgetting"]
    assert open_suites([], {"forgetting": {"general": "x"}}, ["forgetting"]) == {}, "something else reads it"
    with pytest.raises(
        UserError, match=r"^The suite speed is not known\. Known: latency, topic, .*; or your own as mod"
    ):
        open_suites(["speed"])
    with pytest.raises(UserError, match=r"^generl is not an option of the suite forgetting\. Did you mean general\?$"):
        open_suites(["forgetting"], {"forgetting": {"generl": "x"}})
    with pytest.raises(UserError, match=r"^zzz is not an option of the suite forgetting\. It has: general"):
        open_suites(["forgetting"], {"forgetting": {"zzz": "x"}})


@pytest.mark.parametrize("name", [name for name in SUITES if name != "lm-eval"])
def test_every_suite_is_found_by_its_name(name: str) -> None:
    loaded = SUITES.load(name, Path.cwd())
    assert loaded.__name__.lower() == name.replace("_", "")
    assert callable(loaded.measure)
    assert not SUITES.is_users(name)


# Sections of a run alone


def test_sections_that_are_not_asked_for_are_none() -> None:
    nothing = Keeping(False, False, None, None)  # type: ignore[arg-type]
    assert nothing.sections(None, None) == {"checkpoints": None, "how_to_keep": None}  # type: ignore[arg-type]
    asked = [Keeping(*each, None, None).is_asked_for for each in ((False, True), (True, False), (True, True))]  # type: ignore[arg-type]
    assert asked == [True, True, True]
    assert not nothing.is_asked_for
