"""A search for a prompt: on training rows, by racing; the held-out rows are asked about at the end alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Body, scripted

import tunesmith
from tunesmith import Recipe, UserError
from tunesmith.data.example import Source
from tunesmith.data.examples import held_out_examples
from tunesmith.prompting.prompt import Prompt, example_of
from tunesmith.prompting.rows import apart_from, recipe_of, split_rows

ROWS = 120


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(ROWS)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("recipe.yaml").write_text("data: {train: rows.jsonl, held_out: 0.3}", encoding="utf-8")
    Path("add.txt").write_text("Add the numbers.", encoding="utf-8")
    Path("talk.yaml").write_text("system: Talk.", encoding="utf-8")
    return tmp_path


def answer(body: Body) -> str:
    """Right if it is asked to add, or for each third question with an example; a prompt if it is asked for one."""
    turns = body["messages"]
    question = turns[-1]["content"]
    if question.startswith("Here are questions"):
        return '"Add the numbers {well}."' if body["seed"] % 2 else "Talk well."
    number = int(re.findall(r"\d+", question)[0])
    is_right = "Add" in turns[0]["content"] or (len(turns) > 2 and number % 3 == 0) or number % 10 == 0
    return str(2 * number) if is_right else "I do not know."


def questions(bodies: list[Body]) -> list[str]:
    return [body["messages"][-1]["content"] for body in bodies]


def held_out() -> set[str]:
    rows = held_out_examples(Recipe.load("recipe.yaml").data, ())
    return {str(row.messages[0]["content"]) for row in rows if row.messages}


def search(url: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    return tunesmith.prompt_search(url, *arguments, **{"rows": 32, **options})


def named(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in result["candidates"]}


def test_the_best_prompt_wins_on_training_rows_and_is_shown_to_on_held_out_rows(here: Path) -> None:
    with scripted(answer) as server:
        result = search(server.url, "recipe.yaml", candidates=["add.txt", "talk.yaml"], k=[0, 2], output="best.yaml")
        asked = questions(server.asked)
    assert (result["winner"], result["verdict"], result["metric"]["name"]) == ("add", "better", "exact_match")
    assert list(named(result)) == ["plain", "add", "talk", "plain + 2 similar", "add + 2 similar", "talk + 2 similar"]
    assert named(result)["add + 2 similar"]["why"] in ("not shown to be worse", "lower half")
    assert named(result)["talk"]["why"] in ("shown to be worse", "lower half")
    assert result["development"] == {"data": "training rows of recipe.yaml", "rows": 32, "rounds": [8, 16, 32]}
    at_the_end = 2 * result["held_out"]["rows"]
    assert held_out().isdisjoint(asked[:-at_the_end])
    assert set(asked[-at_the_end:]) <= held_out()
    assert result["held_out"]["models"]["add"]["exact_match"]["value"] == 1
    assert result["held_out"]["differences"]["add"]["exact_match"]["rows"] == result["held_out"]["rows"] == 32
    written = Prompt.load("best.yaml")
    assert (written.version, written.system_text) == (named(result)["add"]["version"], "Add the numbers.")


def test_examples_are_training_rows_beside_those_that_are_answered(here: Path) -> None:
    with scripted(answer) as server:
        result = search(server.url, "recipe.yaml", k=[0, 3], choose=["similar", "diverse", "random"], output="e.yaml")
        bodies = list(server.asked)
    shown = {turn["content"] for body in bodies for turn in body["messages"][:-1] if turn["role"] == "user"}
    asked = set(questions(bodies))
    assert shown
    assert shown.isdisjoint(asked)
    assert shown.isdisjoint(held_out())
    assert result["pool"] <= ROWS - len(held_out()) - 32
    saved = Prompt.load("e.yaml")
    assert named(result)[result["winner"]]["version"] == saved.version
    assert result["winner"].startswith("plain + 3")
    if "similar" in result["winner"]:
        assert len(saved.pool) == result["pool"]


def test_equal_prompts_are_said_to_be_equal(here: Path) -> None:
    Path("again.txt").write_text("Add up the numbers.", encoding="utf-8")
    Path("tell.txt").write_text("Tell.", encoding="utf-8")
    with scripted(answer) as server:
        result = search(server.url, "recipe.yaml", candidates=["add.txt", "again.txt"], k=[0])
        assert (result["winner"], result["tied"]) == ("add", ["again"])
        result = search(server.url, "recipe.yaml", candidates=["tell.txt", "talk.yaml"], k=[0])
    assert (result["winner"], result["verdict"], result["output"]) == ("plain", "no prompt", None)


def test_templates_and_models_write_candidates(here: Path) -> None:
    Path("t.yaml").write_text(
        "system: '{verb} {how}.'\nvariables: {verb: [Add, Talk], how: [fast, well]}", encoding="utf-8"
    )
    with scripted(answer) as server:
        result = search(server.url, "recipe.yaml", template="t.yaml", writer=server.url, writer_count=6, k=[0])
        asking = [body for body in server.asked if "Here are questions" in body["messages"][-1]["content"]]
    assert {each["origin"] for each in result["candidates"]} == {"plain", "template", "written"}
    assert "t verb=Add how=fast" in named(result)
    assert {each["system"] for each in result["candidates"] if each["origin"] == "written"} == {
        "Add the numbers {well}.",
        "Talk well.",
    }
    assert result["writer"]["asked"] == len(asking) == 6
    assert result["writer"]["different"] == 2
    assert len({body["messages"][-1]["content"] for body in asking}) == 6, "other rows each time"
    assert not any(question in body["messages"][-1]["content"] for body in asking for question in held_out())
    assert named(result)[result["winner"]]["system"].startswith("Add")


def test_the_examples_of_a_candidates_own_lose_the_rows_that_are_answered(here: Path) -> None:
    Path("own.yaml").write_text("system: Talk.\nexamples: {rows: rows.jsonl, k: 2, choose: similar}", encoding="utf-8")
    with scripted(answer) as server:
        result = search(server.url, "recipe.yaml", candidates=["own.yaml"], k=[0, 1])
        bodies = list(server.asked)
    assert list(named(result)) == ["plain", "own", "plain + 1 similar"]
    shown = {turn["content"] for body in bodies for turn in body["messages"][:-1] if turn["role"] == "user"}
    assert shown.isdisjoint(held_out() | set(questions(bodies)))


def test_near_duplicates_of_held_out_rows_are_no_examples() -> None:
    rows = [example_of(text, "a", Source("r", 1)) for text in ("How do I reset my password?", "Where is my invoice?")]
    others = [example_of("how do I reset my password", "b", Source("r", 2))]
    assert apart_from(rows, others) == rows[1:]
    long = " ".join(f"w{n}" for n in range(20))
    rows = [example_of(text, "a", Source("r", 1)) for text in (f"{long} x", f"{long} x y z a b")]
    assert apart_from(rows, [example_of(long, "b", Source("r", 1))]) == rows[1:], "18 of 19 triples of words, 18 of 23"
    assert apart_from(rows, []) == rows


def test_a_files_held_out_rows_contain_those_of_a_recipe_with_a_smaller_share(here: Path) -> None:
    origin, of_file = recipe_of("embedded", "rows.jsonl")
    found = {str(row.messages[0]["content"]) for row in held_out_examples(of_file.data, ()) if row.messages}
    small = Recipe.load("recipe.yaml", ["data.held_out=0.1"])
    assert {str(row.messages[0]["content"]) for row in held_out_examples(small.data, ()) if row.messages} < found
    rows = split_rows(origin, of_file, 20, True, 0)
    assert len(rows.development) == 20
    assert [row.source for row in rows.development] == [
        row.source for row in split_rows(origin, of_file, 20, True, 0).development
    ]
    assert [row.source for row in rows.development] != [
        row.source for row in split_rows(origin, of_file, 20, True, 1).development
    ]


def test_a_search_that_was_killed_answers_only_what_is_new(here: Path, tiny_model: Path) -> None:
    options: dict[str, Any] = {"candidates": ["add.txt"], "k": [0], "rows": 16, "max_new_tokens": 2}
    steps: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and "held-out" in event["what"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tunesmith.prompt_search(str(tiny_model), "recipe.yaml", **options, subscribers=[stop])
    seen: list[dict[str, Any]] = []
    result = tunesmith.prompt_search(str(tiny_model), "recipe.yaml", **options, subscribers=[seen.append])
    steps = [event["done"] for event in seen if event.get("what", "").startswith("round 1")]
    assert steps[:2] == [0, 16], "the first candidate's answers are all known"
    assert result == tunesmith.prompt_search(str(tiny_model), "recipe.yaml", **options, cache=False)


def test_a_run_has_the_winner_and_the_result(here: Path, tiny_model: Path) -> None:
    tunesmith.train(
        {"base": str(tiny_model), "data": {"train": "rows.jsonl", "held_out": 0.3}, "train": {"steps": 1}}, run="run"
    )
    options: dict[str, Any] = {"candidates": ["add.txt"], "k": [0, 1], "rows": 16, "max_new_tokens": 2}
    result = tunesmith.prompt_search("run", **options, output="run")
    assert json.loads(Path("run/prompt_search.json").read_text(encoding="utf-8"))["winner"] == result["winner"]
    assert Prompt.load("run").version == named(result)[result["winner"]]["version"]
    with pytest.raises(UserError, match=r"run/prompt.yaml already exists"):
        tunesmith.prompt_search("run", **options, output="run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [0]}, "There is nothing to compare"),
        ({"k": [-1]}, "k: give numbers of examples from 0 on"),
        ({"choose": ["best"]}, "choose: best is not one of random, similar, diverse"),
        ({"metric": "rouge"}, "The metric rouge is not known"),
        ({"metric": "length_ratio"}, "neither more nor less"),
        ({"metric": "fields"}, "metric: fields does not fit every expected answer"),
        ({"template": "talk.yaml"}, "talk.yaml: no variable has a list of values"),
        ({"candidates": ["none.yaml"]}, "none.yaml cannot be read as a prompt"),
        ({"candidates": ["plain.yaml"]}, "Two candidates have the name plain"),
        ({"output": "none/p.yaml"}, "none is not a directory"),
        ({"output": "p.txt"}, "p.txt is neither a run nor a .yaml file"),
        ({"output": "talk.yaml"}, "talk.yaml already exists"),
        ({"source": None}, "embedded is no run, so it has no rows"),
        ({"source": "few.jsonl"}, "few.jsonl has .* training chats, and a search needs 16"),
        ({"source": "folds.yaml"}, "data.folds holds every row out once"),
        ({"source": "classes.yaml"}, "objective: classification writes no text"),
        ({"source": "none.yaml"}, "none.yaml has no held-out chats"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_one_line(options: dict[str, Any], message: str, here: Path) -> None:
    Path("plain.yaml").write_text("system: Hi.", encoding="utf-8")
    Path("few.jsonl").write_text(
        "".join(Path("rows.jsonl").read_text().splitlines(keepends=True)[:14]), encoding="utf-8"
    )
    Path("folds.yaml").write_text("data: {train: rows.jsonl, folds: 3}", encoding="utf-8")
    Path("classes.yaml").write_text("{data: {train: rows.jsonl}, objective: classification}", encoding="utf-8")
    if options.get("source") == "none.yaml":
        Path("none.yaml").write_text("data: {train: rows.jsonl, held_out: 0}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        tunesmith.prompt_search("embedded", **{"source": "recipe.yaml", "rows": 16, "max_new_tokens": 1, **options})
