"""A judge in an evaluation: its verdicts as figures, and how far it can be trusted, with a server and a poor model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from command import typed
from running_server import served, tiny_llama
from scripted_server import Body, RefusedError, scripted

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.statistics.prediction_powered import prediction_powered

ROWS = 5


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model, with context enough to be a judge."""
    torch.manual_seed(1)
    return tiny_llama(tmp_path_factory.mktemp("other") / "other", byte_tokenizer())


@pytest.fixture
def small(tiny_model: Path, other: Path, write_rows: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Evaluates both models with a judge."""

    def run(judge: str | Path, **options: Any) -> dict[str, Any]:
        asked = {"data": write_rows(ROWS), "rows": None, "max_new_tokens": 4, "judge": judge}
        return evaluate([tiny_model, other], **(asked | options))

    return run


def parts(body: Body) -> list[str]:
    """The answers in a judge's question."""
    text = body["messages"][-1]["content"]
    if "[Answer]\n" in text:
        return [text.split("[Answer]\n")[1]]
    return list(text.split("[Answer A]\n")[1].split("\n\n[Answer B]\n"))


def points(answer: str) -> int:
    return 1 + sum(answer.encode()) % 5


def by_points(body: Body) -> str:
    """Scores an answer by its bytes, or prefers the one with more points."""
    values = [points(answer) for answer in parts(body)]
    if len(values) == 1:
        return json.dumps({"reason": "its bytes", "score": values[0]})
    a, b = values
    return json.dumps({"reason": "its bytes", "better": "A" if a > b else "B" if b > a else "tie"})


def test_scores_are_figures_with_intervals_differences_and_a_report(small: Callable[..., Any]) -> None:
    with scripted(by_points) as server:
        found = small(server.url)
        assert len(server.asked) == 2 * 2 * ROWS
    samples = found["samples"]
    for model in found["models"]:
        expected = [points(sample["answers"][model]) for sample in samples]
        figure = found["models"][model]["judge.score"]
        assert (figure["value"], figure["rows"]) == (pytest.approx(sum(expected) / ROWS), ROWS)
        about = found["judge"]["models"][model]
        assert list(about["verdicts"].values()) == expected
        assert list(about["verdicts"]) == [sample["source"] for sample in samples]
        assert (about["replies"], about["unread"], about["itself"]["value"]) == (2 * ROWS, 0, 1)
    llama, other = (found["models"][model]["judge.score"]["value"] for model in ("llama", "other"))
    assert found["differences"]["other"]["judge.score"]["value"] == pytest.approx(other - llama)
    assert found["figures"]["judge.score"]["title"].startswith("score by ")
    assert {key: found["judge"][key] for key in ("rubric", "pairs", "refused_schema", "labels")} == {
        "rubric": None,
        "pairs": False,
        "refused_schema": None,
        "labels": None,
    }


def test_wins_are_against_the_first_model_which_ties_with_itself(small: Callable[..., Any]) -> None:
    with scripted(by_points) as server:
        found = small(server.url, judge_pairs=True)
    expected = []
    for sample in found["samples"]:
        first, second = (points(answer) for answer in sample["answers"].values())
        expected.append(0.5 + (second > first) / 2 - (first > second) / 2)
    assert list(found["judge"]["models"]) == ["other"]
    assert list(found["judge"]["models"]["other"]["verdicts"].values()) == expected
    wins = sum(expected) / ROWS
    assert found["models"]["other"]["judge.wins"]["value"] == pytest.approx(wins)
    assert found["models"]["llama"]["judge.wins"]["value"] == 0.5
    assert found["differences"]["other"]["judge.wins"]["value"] == pytest.approx(wins - 0.5)
    assert found["judge"]["models"]["other"]["itself"]["value"] == 1


def test_a_judge_that_prefers_a_position_shows_it_by_disagreeing_with_itself(small: Callable[..., Any]) -> None:
    with scripted(lambda _: '{"better": "A"}') as server:
        found = small(server.url, judge_pairs=True)
    assert found["models"]["other"]["judge.wins"]["value"] == 0.5
    assert found["judge"]["models"]["other"]["itself"]["value"] == 0


@pytest.mark.long
def test_replies_that_cannot_be_read_are_counted_and_make_no_figure(small: Callable[..., Any]) -> None:
    with scripted(lambda _: "It is good.") as server:
        found = small(server.url)
    assert all("judge.score" not in figures for figures in found["models"].values())
    about = found["judge"]["models"]["other"]
    assert (about["unread"], about["itself"], set(about["verdicts"].values())) == (2 * ROWS, None, {None})


def test_replies_are_constrained_by_a_schema_unless_the_server_refuses_it(small: Callable[..., Any]) -> None:
    def refuses(body: Body) -> str:
        if "response_format" in body:
            raise RefusedError("response_format is not supported")
        return by_points(body)

    with scripted(by_points) as server:
        constrained = small(server.url, concurrent=1)
    form = server.asked[0]["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    assert form["json_schema"]["schema"]["required"] == ["reason", "score"]
    with scripted(refuses) as server:
        found = small(server.url, concurrent=1)
    assert ["response_format" in body for body in server.asked] == [True] + [False] * 4 * ROWS
    assert found["judge"]["refused_schema"] == "response_format is not supported"
    for model, about in found["judge"]["models"].items():
        assert about == constrained["judge"]["models"][model]


@pytest.mark.long
def test_a_server_that_refuses_more_than_the_schema_is_an_error(small: Callable[..., Any]) -> None:
    def refuses(body: Body) -> str:
        raise RefusedError("too long")

    with scripted(refuses) as server, pytest.raises(UserError, match="answers 400: too long"):
        small(server.url)


@pytest.mark.long
def test_labels_of_some_answers_correct_the_mean_of_all(small: Callable[..., Any], tmp_path: Path) -> None:
    with scripted(by_points) as server:
        verdicts = small(server.url)["judge"]["models"]["other"]["verdicts"]
        people = {source: min(5, value + 1) for source, value in list(verdicts.items())[:3]}
        labels = tmp_path / "labels.jsonl"
        rows = [{"source": source, "model": "other", "score": value} for source, value in people.items()]
        labels.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"model": "unknown"}]))
        found = small(server.url, labels=labels)
    assert found["judge"]["labels"] == {"file": str(labels), "rows": 4}
    about = found["judge"]["models"]["other"]
    judged = [float(value) for value in verdicts.values()]
    value, (low, high) = prediction_powered(
        np.array(judged[:3]), np.array(list(people.values()), np.float64), np.array(judged[3:]), (1, 5)
    )
    assert about["corrected"] == {"value": value, "interval": [max(1, low), min(5, high)]}
    assert about["labels"] == 3
    assert about["people"]["value"] == sum(people[source] == verdicts[source] for source in people) / 3
    assert found["judge"]["models"]["llama"] | {"corrected": None} == found["judge"]["models"]["llama"]


@pytest.mark.long
def test_preferences_correct_the_share_of_wins(small: Callable[..., Any], tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    people = {"other": 1.0, "llama": 0.0, "tie": 0.5}
    with scripted(by_points) as server:
        verdicts = small(server.url, judge_pairs=True)["judge"]["models"]["other"]["verdicts"]
        rows = [
            {"source": source, "model": "other", "preferred": best}
            for source, best in zip(verdicts, people, strict=False)
        ]
        labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = small(server.url, judge_pairs=True, labels=labels)["judge"]["models"]["other"]
    values, given = np.array(list(verdicts.values()), np.float64), np.array(list(people.values()))
    value, (low, high) = prediction_powered(values[:3], given, values[3:], (0, 1))
    assert about["labels"] == 3
    assert about["people"]["value"] == (values[:3] == given).mean()
    assert about["corrected"] == {"value": value, "interval": [max(0, low), min(1, high)]}


@pytest.mark.long
def test_a_poor_judge_agrees_with_itself_no_more_than_by_chance(
    tiny_model: Path, other: Path, write_rows: Callable[..., Path]
) -> None:
    """A model with random weights, whose replies have the right form all the same."""
    found = evaluate(tiny_model, None, 4, data=write_rows(30), judge=other)
    about = found["judge"]["models"]["llama"]
    low, high = about["itself"]["interval"]
    assert about["unread"] == 0
    assert low < about["itself"]["chance"] < high < 0.6


@pytest.mark.long
def test_a_model_judges_alike_here_and_behind_a_server(small: Callable[..., Any], other: Path) -> None:
    here = small(other)
    with served(other) as server:
        there = small(f"{server.address}/v1#tiny")
    assert there["judge"]["refused_schema"] is None
    for model, about in here["judge"]["models"].items():
        assert about["verdicts"] == there["judge"]["models"][model]["verdicts"]
        assert about["unread"] == there["judge"]["models"][model]["unread"] == 0


@pytest.mark.long
def test_every_row_of_a_run_with_folds_is_judged(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    train = {"steps": 1, "tokens_per_step": 256, "precision": "fp32"}
    data = {"train": str(write_rows(6)), "folds": 2, "cache": False}
    recipe = {"base": str(tiny_model), "data": data, "method": {"kind": "lora", "rank": 2}, "train": train}
    run = tunesmith.train(recipe, tmp_path / "run")
    with scripted(by_points) as server:
        found = evaluate(run.directory, None, 4, judge=server.url)
    assert found["folds"] == 2
    assert {model: len(about["verdicts"]) for model, about in found["judge"]["models"].items()} == {
        "base": 6,
        "tuned": 6,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": None, "rubric": "r.md"}, "--rubric is for a judge, and there is none"),
        ({"judge": None, "judge_pairs": True}, "--judge-pairs is for a judge, and there is none"),
        ({"judge": None, "labels": "l.jsonl"}, "--labels is for a judge, and there is none"),
        ({"rubric": "none.md"}, "The rubric none.md cannot be read"),
        ({"labels": "none.jsonl"}, "none.jsonl"),
        ({"labels": "bad.jsonl"}, r"bad\.jsonl.*: a label has source, model and a score from 1 to 5"),
        ({"labels": "bad.jsonl", "judge_pairs": True}, r"model and preferred: its model, llama, or tie"),
        ({"labels": "other.jsonl"}, "no label is of an answer that is judged. The first such answer has source: "),
        ({"rows": 0, "suites": ["latency"]}, "--judge judges written answers"),
    ],
)
def test_what_does_not_fit_is_refused(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"source": "a", "model": "other", "score": 6, "preferred": "third"}\n')
    (tmp_path / "other.jsonl").write_text('{"source": "a", "model": "other", "score": 2}\n')
    with scripted(by_points) as server, pytest.raises(UserError, match=message):
        small(**({"judge": server.url} | options))
    assert not server.asked


def test_a_model_that_writes_no_text_is_no_judge(small: Callable[..., Any], reading: Path) -> None:
    with pytest.raises(UserError, match="classes"):
        small(reading / "classes")


def test_pairs_need_a_second_model(tiny_model: Path, other: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="Name a second model"):
        evaluate(tiny_model, None, 4, data=write_rows(2), judge=other, judge_pairs=True)


def test_a_gate_may_be_on_a_judges_figure(
    tiny_model: Path, other: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gate.yaml").write_text("limits:\n- {figure: judge.score, model: other, at_least: 1}\n")
    options = ["--data", str(write_rows(4)), "--max-new-tokens", "4", "--gate", "gate.yaml", "--output", "out"]
    with scripted(by_points) as server:
        done = typed("evaluate", str(tiny_model), str(other), "--judge", server.url, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "score by" in page
    assert "<h2>The judge</h2>" in page
    assert "replies that could not be read" in page
