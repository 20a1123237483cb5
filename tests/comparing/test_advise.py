"""Advice before there are rows: published figures, planned costs, limits, and a comparison to fill in."""

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from command import typed

import tunesmith
from tunesmith.comparing.answers import CHANGES, Answers
from tunesmith.comparing.priors import FINDINGS, STUDIES, ReadIn, studies_on
from tunesmith.comparing.spec import Comparison
from tunesmith.comparing.ways import WAYS
from tunesmith.errors import UserError
from tunesmith.statistics.differences import LEVEL
from tunesmith.statistics.power import rows_to_show

PAGE = Path(__file__).parents[2] / "docs" / "deciding.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def advised(change: str, **answers: Any) -> dict[str, Any]:
    """The advice without costs, since the base is an empty directory, unless a base is given."""
    Path("empty").mkdir(exist_ok=True)
    return tunesmith.advise(change, **{"base": "empty", "device": "h100"} | answers)  # type: ignore[arg-type]


def test_facts_that_change_daily_are_retrieved_first_and_never_held_by_weights_alone() -> None:
    found = advised("facts", facts_change="daily", rows=500, documents=20)
    assert found["way"] == "retrieval"
    assert "daily" in found["left_out"]["tuned"]
    assert "tuned_retrieval" in found["compare"]  # its facts are in the documents


def test_facts_that_never_change_are_retrieved_first_since_tuning_is_behind_in_every_study() -> None:
    found = advised("facts", rows=500, documents=20)
    assert found["way"] == "retrieval"
    assert "tuned" not in found["compare"]
    assert "tuned is behind retrieval in the experiments: retrieval gains +28.7 to +37.1 points" in " ".join(
        found["because"]
    )


def test_a_form_with_five_hundred_rows_is_tuned_first() -> None:
    found = advised("form", rows=500)
    assert (found["way"], found["certain"]) == ("tuned", False)
    assert found["compare"] == ["plain", "prompt", "few_shot", "tuned"]


@pytest.mark.parametrize("change", CHANGES)
def test_without_rows_and_documents_a_prompt_is_first(change: str) -> None:
    found = advised(change)
    assert (found["way"], found["compare"]) == ("prompt", ["plain", "prompt"])


def test_a_way_that_needs_no_rows_stays_in_the_comparison_also_if_a_costlier_one_is_ahead() -> None:
    found = advised("both", rows=500, documents=20)
    assert found["way"] == "retrieval_tuned"
    assert "retrieval" in found["compare"]


def test_advice_by_one_paper_or_with_ways_that_no_study_measured_is_never_certain() -> None:
    for change in CHANGES:
        assert not advised(change, rows=500, documents=20)["certain"]


def test_an_answer_that_takes_too_long_leaves_a_way_out() -> None:
    costs = {name: way["cost"]["seconds"] for name, way in advised("labels", rows=500, base="embedded")["ways"].items()}
    assert costs["few_shot"] > costs["prompt"] > costs["tuned"]
    limit = (costs["few_shot"] + costs["prompt"]) / 2
    found = advised("labels", rows=500, base="embedded", latency=limit)
    assert list(found["left_out"]) == ["few_shot"]
    assert "acceptable" in found["left_out"]["few_shot"]


def test_a_run_that_does_not_fit_leaves_fine_tuning_out() -> None:
    found = advised("form", rows=500, base="llama-3-8b", device="rtx-3060")
    assert "GB" in found["left_out"]["tuned"]
    assert found["way"] == "prompt"


def test_few_rows_are_shown_in_a_prompt_and_not_trained_on() -> None:
    found = advised("labels", rows=49)
    assert list(found["left_out"]) == ["tuned"]
    assert advised("labels", rows=50)["left_out"] == {}


def test_costs_are_those_of_the_planner_and_of_assumed_lengths() -> None:
    found = advised("facts", rows=500, documents=20, base="embedded")
    assert found["plan"]["training_bytes"] == tunesmith.plan("embedded", device="h100").memory.peak_bytes
    costs = {name: way["cost"] for name, way in found["ways"].items()}
    assert costs["retrieval"]["tokens_in"] == costs["plain"]["tokens_in"] + 600
    assert costs["tuned"]["seconds_once"] > 5 > costs["retrieval"]["seconds_once"] > 0
    assert costs["tuned"]["change_seconds"] > costs["retrieval"]["change_seconds"]
    assert found["prices"]["device_hour"] == 3.0


def test_a_base_that_cannot_be_planned_is_named_and_the_advice_goes_on(tmp_path: Path) -> None:
    found = advised("form", rows=500, base=str(tmp_path))
    assert str(tmp_path) in found["unplanned"]
    assert (found["way"], found["plan"], found["ways"]["tuned"]["cost"]) == ("tuned", None, None)


def test_the_held_out_rows_show_ten_points_for_all_comparisons_together() -> None:
    found = advised("form", rows=500)
    assert found["held_out_rows"] == rows_to_show(0.1, (0.3 - 0.01) ** 0.5, LEVEL / 3)
    assert found["rows_to_label"] == found["held_out_rows"] + 500
    assert found["detectable"] > 0.1  # with these rows alone


def test_the_comparison_is_read_back_with_the_ways_prices_and_limits(tmp_path: Path) -> None:
    found = advised("both", rows=500, documents=20, latency=2.5, requests=100, hosted=True, price_in=0.5,
                    base="embedded", output="compare.yaml")  # fmt: skip
    with pytest.raises(UserError, match=r"documents: .* does not exist"):
        Comparison.load("compare.yaml")
    (tmp_path / "documents").mkdir()
    (tmp_path / "prompt.yaml").touch()
    read = Comparison.load("compare.yaml")
    assert read.ways == found["compare"]
    assert (read.base, read.limits.latency_p95, read.prices.requests) == ("embedded", 2.5, 1200)
    assert read.prices.device_hour == 3.0
    assert read.rows == found["held_out_rows"]
    text = Path("compare.yaml").read_text(encoding="utf-8")
    assert "#    price_in: 0.5\n#    price_out: 1.0  # fill in\n" in text
    assert text.count("fill in") >= 4


def test_a_comparison_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already exists"):
        advised("form", output="compare.yaml")
    assert typed("advise", "--change", "form").returncode == 2
    assert (tmp_path / "compare.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"change": "style"}, "change: style is not known. Known: facts, form"),
        ({"change": "facts", "facts_change": "hourly"}, "facts_change: hourly"),
        ({"change": "facts", "rows": -1}, "rows: -1 is too small"),
        ({"change": "facts", "documents": float("nan")}, "documents: nan"),
        ({"change": "facts", "latency": 0}, "latency: 0 is no time"),
        ({"change": "facts", "device": "h1000"}, "--device: h1000 is not known"),
    ],
)
def test_an_answer_that_is_not_valid_is_named(answers: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tunesmith.advise(**answers)


def test_the_function_has_the_defaults_of_the_questions() -> None:
    parameters = inspect.signature(tunesmith.advise).parameters
    assert all(parameters[each.name].default == each.default for each in fields(Answers)[1:])


FLAGS = ("--change facts --facts-change daily --rows 500 --documents 20 --requests 900 --latency 30 --no-hosted "
         "--base embedded --device h100").split()  # fmt: skip


def test_options_and_answers_in_a_terminal_give_the_same() -> None:
    by_options = typed("advise", *FLAGS, "--output", "a.yaml", "--json")
    lines = "facts\nhourly\ndaily\n500\n20\n900\n30\nn\n\nh100\n"  # an unknown answer is asked for again
    by_answers = typed("advise", "--output", "b.yaml", "--json", given=lines, in_terminal=True)
    assert by_options.returncode == by_answers.returncode == 0, by_answers.stderr
    assert "How often do the facts change?" in by_answers.stderr
    first, second = json.loads(by_options.stdout), json.loads(by_answers.stdout)
    assert first | {"output": ""} == second | {"output": ""}
    assert first["assumed"] == []
    assert Path("a.yaml").read_text().replace("a.yaml", "") == Path("b.yaml").read_text().replace("b.yaml", "")


def test_only_what_no_option_answers_is_asked_for() -> None:
    done = typed("advise", *FLAGS[:-2], "--hosted", "--price-in", "1", given="h100\n2\n", in_terminal=True)
    assert done.returncode == 0, done.stderr
    assert "On which device?" in done.stderr
    assert "And of a million tokens written?" in done.stderr
    assert "How many" not in done.stderr


def test_outside_of_a_terminal_defaults_are_stated_and_what_must_change_is_required() -> None:
    refused = typed("advise")
    assert refused.returncode == 2
    assert "--change is missing: what must change? Give one of: facts, form" in refused.stderr
    done = typed("advise", "--change", "form", "--device", "h100")
    assert "--facts-change never --rows 0 --documents 0 --requests 3000" in " ".join(done.stdout.split())


def test_the_terminal_marks_figures_as_prior_and_stays_within_eighty_columns() -> None:
    done = typed("advise", "--change", "both", "--documents", "20", "--rows", "500", "--device", "h100", "--base",
                 "llama-3-8b", "--hosted", "--price-in", "0.5", "--price-out", "1.5")  # fmt: skip
    assert "Prior figures, from published experiments. They are not measured on your data." in " ".join(
        done.stdout.split()
    )
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "tuned_retrieval       +11.0" in done.stdout
    assert "Start with retrieval_tuned." in done.stdout


def test_every_prior_has_a_source_and_known_ways() -> None:
    for study in STUDIES:
        assert all((study.paper, study.source, study.setting))
        assert study.read_in in get_args(ReadIn)
        assert set(study.changes) <= set(CHANGES)
        assert study.points.keys() <= WAYS.keys()
        assert len(study.points) >= 2
        assert all(0 <= value <= 100 for value in study.points.values())
    assert all(each.source and set(each.changes) <= set(CHANGES) for each in FINDINGS)
    assert all(studies_on(change) for change in CHANGES)  # type: ignore[arg-type]


def test_the_page_has_the_table_of_prior_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for study in STUDIES:
        points = ", ".join(f"{way} {value:g}" for way, value in study.points.items())
        assert f"| {study.paper}, {study.source} | {study.setting} | {points} | {study.read_in} |" in page
    for each in FINDINGS:
        assert f"- {each.text} ({each.source})" in page
