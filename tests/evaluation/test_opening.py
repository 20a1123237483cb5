"""Names on a command line, what they open, the rows that are evaluated on, and the questions of a file."""

from pathlib import Path
from typing import Any

import pytest
from evaluated import recipe_in, turn, written

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.opening import Opening, Wanted, extensions_of, names_of, run_alone
from tunesmith.evaluation.questions import questions
from tunesmith.evaluation.subjects import SubjectName, column_names, open_subject


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name", ("name", None, None)),
        ("name@int8", ("name", "int8", None)),
        ("a@b@gguf:q8_0", ("a@b", "gguf:q8_0", None)),
        ("https://host/v1#m@int8", ("https://host/v1", None, "m@int8")),
        ("http://host/v1#", ("http://host/v1", None, None)),
    ],
)
def test_a_name_is_read_in_its_parts(text: str, parts: tuple[str, str | None, str | None]) -> None:
    name = SubjectName.parse(text)
    assert (name.target, name.storage, name.served_model) == parts
    assert name.text == text
    assert name.is_served == text.startswith("http")
    assert name.checkpoint is None
    assert name.run is None


def test_a_path_that_exists_is_no_way_to_store_weights(tmp_path: Path) -> None:
    (tmp_path / "a@int8").mkdir()
    assert SubjectName.parse(str(tmp_path / "a@int8")).storage is None
    with pytest.raises(UserError, match=r"x@gguf:q9: @gguf:q9 is not one of gguf:"):
        SubjectName.parse("x@gguf:q9")
    names = [SubjectName.parse(text) for text in ("x/a@int8", "y/a@int8", "x/b")]
    assert column_names(names) == ["x/a@int8", "y/a@int8", "b"]
    assert names_of("a") == names_of(Path("a")) == names_of(["a"]) == [SubjectName("a", "a")]


def test_a_run_is_alone_if_it_is_the_only_name_and_itself(tmp_path: Path) -> None:
    run = recipe_in(tmp_path / "run", train=written(tmp_path / "rows.jsonl", [{"text": "a"}]))
    for models in ([run, "embedded"], f"{run}@int8", "embedded"):
        assert run_alone(models) is None
    with pytest.raises(UserError, match=r"run has not finished\. Resume it: tunesmith train --resume .*run$"):
        run_alone(run)
    assert extensions_of(names_of([run, "embedded"])) == Recipe.load(run / "recipe.yaml").extensions


def test_models_have_the_rows_that_are_named_or_those_of_the_first_run(tmp_path: Path, tiny_model: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [{"question": "a?", "answer": "b"}])
    opening = Opening(1, "cpu", False)

    def rows(paths: Any, count: int | None, has_suites: bool) -> Any:
        return opening.models(Wanted(names_of([tiny_model]), paths, count, has_suites)).rows

    assert rows([file], 0, True) is None
    assert rows(None, 3, True) is None
    assert rows([file], 3, True).origin == rows([file], 0, False).origin == "rows of rows.jsonl"
    with pytest.raises(UserError, match=r"There are no rows to evaluate on. Give --data FILE, or name a run"):
        rows(None, 0, False)


def test_the_first_form_of_a_model_has_to_be_made_and_others_are_left_out(tiny_model: Path) -> None:
    asked, opening = Wanted(names_of([tiny_model]), None, 0, True), Opening(1, "cpu", False)
    trial = opening.forms(asked, ["fp32", "gguf:iq2_xs"])
    assert [subject.name for subject in trial.subjects] == ["llama@fp32"]
    assert (list(trial.left_out), trial.are_forms, trial.run, trial.fold) == (["llama@gguf:iq2_xs"], True, None, None)
    with pytest.raises(UserError, match="importance matrix"):
        opening.forms(asked, ["gguf:iq2_xs", "fp32"])


def test_questions_are_read_from_columns_and_chats_with_and_without_answers(tmp_path: Path) -> None:
    rows: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        *(({column: "a?"}, [turn("user", "a?")]) for column in ("question", "prompt", "query", "problem", "q")),
        ({"instruction": "Add.", "input": "1"}, [turn("user", "Add.\n1")]),
        ({"Question": "a?", "system": "Be."}, [turn("system", "Be."), turn("user", "a?")]),
        ({"question": "a?", "answer": "b"}, [turn("user", "a?")]),
        ({"messages": [turn("user", "a?")]}, [turn("user", "a?")]),
        (
            {"messages": [turn("user", "a?"), turn("assistant", "b"), turn("user", "c?")]},
            [turn("user", "a?"), turn("assistant", "b"), turn("user", "c?")],
        ),
        ({"prompt": "a?", "chosen": "b", "rejected": "c"}, [turn("user", "a?")]),
    ]
    for row, chat in rows:
        (found,) = questions([written(tmp_path / "rows.jsonl", [row])])
        assert list(found.chat) == chat
        assert found.source.endswith("rows.jsonl row 1")


def test_what_a_model_computes_is_kept_in_the_cache_unless_it_is_not_to_be(tiny_model: Path) -> None:
    (name,) = names_of([tiny_model])
    kept, lost = open_subject(name, "a"), open_subject(name, "a", keeps=False)
    assert kept.identity is not None
    assert lost.identity is None
