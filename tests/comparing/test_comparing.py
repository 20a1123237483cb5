"""The ways side by side: the same rows for all, nothing learned from what decides, and costs that were measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from running_server import served

import tunesmith
from tunesmith.comparing.excerpts import Excerpts
from tunesmith.comparing.spec import Comparison
from tunesmith.comparing.ways import WAYS
from tunesmith.errors import UserError
from tunesmith.prompting.prompt import Prompt
from tunesmith.retrieval.search import Index

Rows = list[dict[str, str]]


def write(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def material(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one form, of which two training rows repeat a held-out one, and documents with other facts."""
    directory = tmp_path_factory.mktemp("comparison")
    rows = [{"question": f"What is {n} + {n} + {n + 3}?", "answer": "It is so."} for n in range(60)]
    write(directory / "held_out.jsonl", rows[:12])
    write(directory / "train.jsonl", rows[10:])
    (directory / "docs").mkdir()
    (directory / "docs" / "a.md").write_text("# Sums\n\nWhat is 3? It is so.\n", encoding="utf-8")
    (directory / "brief.txt").write_text("Be brief.", encoding="utf-8")
    settings: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": "train.jsonl", "held_out": "held_out.jsonl"},
        "documents": "docs",
        "encoder": "none",
        "excerpts": 1,
        "prompts": ["brief.txt"],
        "shots": [1],
        "max_new_tokens": 14,
        "precision": "fp32",
        "metric": "rouge_l",
        "tune": {
            "method": {"kind": "full"},
            "train": {"steps": 40, "tokens_per_step": 512, "learning_rate": 0.01},
        },
    }
    (directory / "compare.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """The events of `result`."""
    return []


@pytest.fixture(scope="module")
def result(material: Path, seen: list[dict[str, Any]]) -> dict[str, Any]:
    return tunesmith.compare(material / "compare.yaml", subscribers=[seen.append])


def test_all_ways_answer_the_same_rows_and_the_result_is_kept(result: dict[str, Any], material: Path) -> None:
    assert list(result["ways"]) == list(WAYS)
    assert result["left_out"] == {}
    assert {way["rouge_l"]["rows"] for way in result["ways"].values()} == {12} == {result["rows"]}
    stored = json.loads((material / "compare" / "compare.json").read_text(encoding="utf-8"))
    assert stored["recommendation"] == result["recommendation"]


def test_training_rows_that_repeat_a_held_out_question_are_left_out_and_counted(
    result: dict[str, Any], material: Path
) -> None:
    assert result["removed"]["held_out"] == 2
    trained = (material / "compare" / "rows" / "tuned.jsonl").read_text(encoding="utf-8")
    held_out = [json.loads(line)["question"] for line in (material / "held_out.jsonl").open(encoding="utf-8")]
    assert not [question for question in held_out if json.dumps(question)[1:-1] in trained]
    assert result["training_rows"] + result["development_rows"] + sum(result["removed"].values()) == 50


def test_fine_tuning_that_learns_the_answer_is_recommended(result: dict[str, Any]) -> None:
    recommended = result["recommendation"]
    assert result["ways"]["tuned"]["rouge_l"]["value"] > 0.6
    assert result["ways"]["plain"]["rouge_l"]["value"] < 0.1
    assert result["differences"]["tuned"]["rouge_l"]["verdict"] == "better"
    assert "tuned" in recommended["way"]
    assert recommended["certain"]
    assert recommended["because"][0].startswith(recommended["way"])
    assert "plain" not in recommended["not_worse"]


def test_costs_are_of_what_each_way_needs(result: dict[str, Any]) -> None:
    costs = {name: way["cost"] for name, way in result["ways"].items()}
    assert costs["plain"]["labeled_rows"] == costs["retrieval"]["labeled_rows"] == 0
    assert costs["tuned"]["labeled_rows"] == result["training_rows"]
    assert costs["tuned"]["seconds_once"] > costs["plain"]["seconds_once"] == 0
    assert costs["few_shot"]["tokens_in"] > costs["plain"]["tokens_in"] < costs["prompt"]["tokens_in"]
    assert costs["retrieval"]["tokens_in"] > costs["plain"]["tokens_in"] == costs["tuned"]["tokens_in"]
    assert costs["plain"]["change_seconds"] is None
    assert costs["tuned"]["change_seconds"] == costs["tuned"]["seconds_once"] > costs["retrieval"]["change_seconds"]
    assert all(cost["memory_bytes"] > 0 for cost in costs.values())
    assert all(0 < way["latency"]["p50"] <= way["latency"]["p95"] for way in result["ways"].values())


def test_what_was_chosen_or_made_for_a_way_is_named(result: dict[str, Any], material: Path) -> None:
    about = {name: way["about"] for name, way in result["ways"].items()}
    assert {name: each["title"] for name, each in about.items()} == {name: way.title for name, way in WAYS.items()}
    assert {name: {*each} - {"title", "note"} for name, each in about.items()} == {
        "plain": set(),
        "prompt": {"prompt"},
        "few_shot": {"shots"},
        "retrieval": {"index"},
        "tuned": {"run"},
        "tuned_prompt": {"run", "prompt"},
        "tuned_retrieval": {"run", "index"},
        "retrieval_tuned": {"run", "index"},
    }
    prompt, shots = about["prompt"]["prompt"], about["few_shot"]["shots"]
    assert (prompt["name"], [*prompt["scores"]]) == ("brief.txt", ["brief.txt"])
    assert prompt["version"] == Prompt.load(material / "brief.txt").version
    assert {shots["name"]} < {"1 random", "1 similar"} == {*shots["scores"]}
    assert {each["run"] for name, each in about.items() if name.startswith("tuned")} == {about["tuned"]["run"]}
    assert about["retrieval_tuned"]["run"] != about["tuned"]["run"]
    assert about["retrieval"]["index"] == str(material / "compare" / "index")


def test_the_choice_of_examples_reports_how_many_candidates_have_answered(
    result: dict[str, Any], seen: list[dict[str, Any]]
) -> None:
    assert result
    chosen = [event for event in seen if event["event"] == "progress" and event["what"] == "examples, round 1"]
    assert [(event["done"], event["total"]) for event in chosen] == [(0, 2), (1, 2), (2, 2)]


def test_an_empty_question_has_no_excerpts(result: dict[str, Any], material: Path) -> None:
    assert result
    excerpts = Excerpts(Index(material / "compare" / "index"), 1)
    assert excerpts.hits(" ") == excerpts.texts(" ", 1) == []
    assert [hit.file for hit in excerpts.hits("What is 3?")] == ["a.md"]


def test_a_second_call_trains_nothing_and_finds_the_same(result: dict[str, Any], material: Path) -> None:
    seen: list[dict[str, Any]] = []
    again = tunesmith.compare(material / "compare.yaml", subscribers=[seen.append])
    assert not [event for event in seen if event["event"] == "step"]
    for name, way in again["ways"].items():
        assert way["rouge_l"] == result["ways"][name]["rouge_l"]
    assert again["ways"]["tuned"]["cost"]["seconds_once"] == result["ways"]["tuned"]["cost"]["seconds_once"]


def test_the_rows_of_retrieval_aware_tuning_have_excerpts_as_they_are_asked_with(
    result: dict[str, Any], material: Path
) -> None:
    file = material / "compare" / "rows" / "retrieval_tuned.jsonl"
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])["messages"]
    assert "[1] a.md › Sums" in first[0]["content"]
    assert first[0]["content"].endswith("?")
    assert first[1]["content"] == "It is so."


def test_excerpts_that_do_not_fit_are_counted(material: Path) -> None:
    (material / "long").mkdir()
    (material / "long" / "a.md").write_text("# Sums\n\n" + "What is 3 plus 3? " * 300, encoding="utf-8")
    asked = read(material, documents=str(material / "long"), excerpts=20, ways=["retrieval"])
    note = tunesmith.compare(asked, material / "full")["ways"]["retrieval"]["about"]["note"]
    assert note.startswith("12 chats have fewer than 20 excerpts, since the model reads ")


def test_the_samples_are_rows_in_which_the_ways_differ(result: dict[str, Any]) -> None:
    assert len(result["samples"]) == 5
    for sample in result["samples"]:
        assert set(sample["answers"]) == set(sample["scores"]) == set(WAYS)
        assert max(sample["scores"].values()) > min(sample["scores"].values())


def test_a_server_is_a_way_with_its_price(material: Path, tiny_model: Path) -> None:
    with served(tiny_model) as server:
        hosted = {"url": f"{server.address}/v1", "name": "hosted", "price_in": 2, "price_out": 4}
        asked = read(material, ways=["plain"], servers=[hosted], prices={"device_hour": 1.0}, documents=None)
        found = tunesmith.compare(asked, material / "hosted")
    hosted, plain = found["ways"]["hosted"], found["ways"]["plain"]
    assert hosted["rouge_l"] == plain["rouge_l"]
    cost = hosted["cost"]
    assert cost["tokens_in"] == plain["cost"]["tokens_in"]
    assert cost["per_thousand"] == pytest.approx((2 * cost["tokens_in"] + 4 * cost["tokens_out"]) / 1000)
    assert cost["memory_bytes"] is None
    assert found["recommendation"]["way"] == "plain"


def test_ways_that_cannot_run_are_named_with_the_reason(material: Path) -> None:
    comparison = read(material, documents=None, prompts=[], ways=["plain", "retrieval", "prompt"])
    found = tunesmith.compare(comparison, material / "few")
    assert list(found["ways"]) == ["plain"]
    assert found["left_out"]["retrieval"] == "no documents are named"
    assert found["left_out"]["prompt"] == "no prompts are named"
    assert found["left_out"]["tuned"] == "it is not among ways"


def test_a_limit_excludes_a_way_and_says_so(material: Path) -> None:
    comparison = read(material, documents=None, limits={"memory_gb": 1e-9}, ways=["plain", "few_shot"])
    found = tunesmith.compare(comparison, material / "limited")
    assert any("limits.memory_gb" in line for line in found["recommendation"]["would_change"])


def test_a_budget_takes_rows_first_and_then_ways_and_says_which(material: Path) -> None:
    found = tunesmith.compare(material / "compare.yaml", material / "budget", budget="0.001s")
    assert list(found["ways"]) == ["plain"]
    assert found["left_out"]["tuned"] == "the budget of 0.001s does not allow it"
    assert found["budget"]["seconds"] == 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exerpts": 2}, "exerpts is not a field. Did you mean excerpts?"),
        ({"ways": ["tunned"]}, "tunned is not a way. Known: plain, prompt"),
        ({"documents": "nowhere"}, "nowhere does not exist. Correct the path."),
        ({"servers": [{"url": "localhost"}]}, "servers.0.url: must begin with http:// or https://."),
        ({"metric": "bleu"}, "metric: bleu is a figure of all answers together. Name one that scores each answer."),
        ({"metric": "number"}, "metric: number does not say which answers to these rows are better."),
        ({"data": {"train": "train.jsonl", "held_out": 0.01}}, "held-out rows, and a comparison needs at least 10."),
        ({"tune": {"data": {}}}, "tune.data is not a section. Known: base, method, objective, train"),
        ({"budget": "soon"}, "budget: soon is not a time."),
    ],
    ids=["field", "way", "documents", "server", "metric", "neither", "rows", "tune", "budget"],
)
def test_what_is_wrong_is_named_in_one_line(material: Path, changes: dict[str, Any], message: str) -> None:
    settings = json.loads((material / "compare.yaml").read_text(encoding="utf-8"))
    (material / "wrong.yaml").write_text(json.dumps({**settings, "documents": None, **changes}), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        tunesmith.compare(material / "wrong.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def read(material: Path, **changes: Any) -> Comparison:
    """The comparison with other settings."""
    loaded = Comparison.load(material / "compare.yaml").model_dump()
    return Comparison.model_validate({**loaded, **changes})
