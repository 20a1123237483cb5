"""Suites: latency from what answers took, of models here and of servers; and suites of users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import served

from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.suite import open_suites, parsed_options
from tunesmith.evaluation.suites import latency
from tunesmith.evaluation.suites.latency import level_figures, prompts
from tunesmith.subjects.subject import Timing


@pytest.fixture(autouse=True)
def short_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WORDS", (8, 12))
    monkeypatch.setattr(latency, "CONCURRENT", (1, 2))
    monkeypatch.setattr(latency, "ANSWER", 4)


def test_figures_of_latency_are_percentiles_and_tokens_a_second() -> None:
    firsts, totals, tokens = [0.1, 0.4, 0.2, 0.3], [1.0, 2.0, 4.0, 5.0], [10, 10, 20, 40]
    timings = [Timing(*each) for each in zip(firsts, totals, tokens, strict=True)]
    figures = level_figures(timings, 8, 32)
    for percentile in (50, 95, 99):
        figure = figures[f"first_token_p{percentile}_8x32"]
        assert figure.value == pytest.approx(np.percentile(firsts, percentile))
        assert (figure.better, figure.unit, figure.is_compared) == ("lower", "seconds", percentile == 50)
        assert figure.of(np.array([1, 1, 3])) == pytest.approx(np.percentile([0.4, 0.4, 0.3], percentile))
    assert figures["tokens_per_second_8x32"].value == pytest.approx(np.mean([10, 5, 5, 8]))
    assert len(figures) == 4
    assert len(set(figures["first_token_p50_8x32"].units)) == 4


def test_prompts_of_latency_differ_from_their_first_word_on() -> None:
    (first, *_), (again, *_) = prompts(3, 20, 1), prompts(3, 20, 1)
    assert first == again
    texts = [str(chat[0]["content"]) for chat in [*prompts(40, 20, 1), *prompts(40, 20, 2)]]
    assert len({text.split()[0] for text in texts}) == 80
    assert {len(text.split()) for text in texts} == {20}


@pytest.mark.long
def test_latency_is_measured_of_a_model_and_of_a_server(tiny_model: Path) -> None:
    with served(tiny_model) as server:
        found = evaluate([tiny_model, f"{server.address}/v1#tiny"], 3, suites=["latency"])
    levels = [f"{concurrent}x{words}" for words in (8, 12) for concurrent in (1, 2)]
    names = {f"latency.first_token_p{percentile}_{level}" for percentile in (50, 95, 99) for level in levels}
    names |= {f"latency.tokens_per_second_{level}" for level in levels}
    assert (found["rows"], found["samples"], found["data"]) == (0, [], None)
    for figures in found["models"].values():
        assert set(figures) == names
        for level in levels:
            assert figures[f"latency.first_token_p50_{level}"]["value"] > 0
            assert figures[f"latency.first_token_p50_{level}"]["rows"] == 3
            assert 0 < figures[f"latency.tokens_per_second_{level}"]["value"] < 1e5
    assert found["comparisons"] == 8


SUITE = """
from tunesmith.statistics.measured import mean_of


class Length:
    def measure(self, subject, context):
        answers = subject.answers([task.chat for task in context.tasks], context.sampling)
        lengths = [len(answer.text) for answer in answers]
        units = [task.source for task in context.tasks]
        return {"mean": mean_of(lengths, units, "length", "characters", "neither", "")}


class Broken:
    def measure(self, subject, context):
        return 1 / 0
"""


def test_a_suite_of_ones_own_is_measured_beside_the_rows_and_named_if_it_fails(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mysuites.py").write_text(SUITE, encoding="utf-8")
    asked: Any = {"rows": 3, "max_new_tokens": 5, "data": write_rows(3)}
    found = evaluate(tiny_model, suites=["mysuites:Length"], **asked)
    lengths = [len(sample["answers"]["llama"]) for sample in found["samples"]]
    assert found["models"]["llama"]["length.mean"]["value"] == pytest.approx(np.mean(lengths))
    assert found["figures"]["length.mean"]["title"] == "length"
    with pytest.raises(UserError, match=r"The suite mysuites:Broken failed: ZeroDivisionError.*mysuites.py:\d+"):
        evaluate(tiny_model, suites=["mysuites:Broken"], **asked)


WITH_OPTIONS = """
from tunesmith.statistics.measured import mean_of


class Fixed:
    def __init__(self, number="1", title="fixed"):
        self.number, self.title = float(number), title

    def measure(self, subject, context):
        return {"number": mean_of([self.number], ["one"], self.title, "as asked for", "neither", "")}
"""


def test_the_options_of_a_suite_are_arguments_of_its_class(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "optioned.py").write_text(WITH_OPTIONS, encoding="utf-8")
    options = parsed_options(["optioned:Fixed.number=7", "optioned:Fixed.title=a = b"])
    assert options == {"optioned:Fixed": {"number": "7", "title": "a = b"}}
    found = evaluate(tiny_model, 0, suites=["optioned:Fixed"], suite_options=options)
    assert found["models"]["llama"]["fixed.number"]["value"] == 7
    assert found["figures"]["fixed.number"]["title"] == "a = b"
    with pytest.raises(UserError, match=r"nummer is not an option of the suite optioned:Fixed. Did you mean number\?"):
        open_suites(["optioned:Fixed"], {"optioned:Fixed": {"nummer": "7"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topic.refusal", "--suite-option topic.refusal is not of the form suite.option=value."),
        ("refusal=No.", "--suite-option refusal=No. is not of the form suite.option=value."),
        ("bias.pairs=x", "There are options of the suite bias, which is not measured. Add --suite bias."),
        ("latency.words=3", "words is not an option of the suite latency. It has: none."),
    ],
)
def test_an_option_that_no_suite_takes_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        open_suites(["latency"], parsed_options([text]))
    assert str(refused.value) == message
