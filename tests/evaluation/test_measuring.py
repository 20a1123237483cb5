"""What models compute on rows, of subjects whose answers are given: figures, progress, and what is left out."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunesmith.errors import UserError
from tunesmith.evaluation.measuring import LOSS_TASKS, Asked, Measurement, Trial, _OneModel, emit_figures, measure
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.metrics import METRICS
from tunesmith.run import Events
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Answer

EXACT = {"exact_match": METRICS["exact_match"]}


class Given:
    """A subject that answers `a` to everything, at −3 nats for each expected answer of two tokens.

    Attributes:
        model: None: it is a server; else with the head of the model that reads a prompt first.
    """

    def __init__(self, name: str, head: Any = None, refuses: str | None = None, breaks: bool = False) -> None:
        self.name, self.refuses, self.breaks = name, refuses, breaks
        self.model = None if head is None else SimpleNamespace(head=head)
        self.asked: list[Any] = []
        self.closed = 0

    def answers(self, chats: Sequence[Any], sampling: Sampling, done: Callable[[int], None]) -> list[Answer]:
        if self.breaks:
            raise UserError("cannot be computed here")
        self.asked.append((chats, sampling))
        done(len(chats))
        return [Answer("a") for _ in chats]

    def scores(self, chats: Sequence[Any], answers: Sequence[str]) -> list[Score]:
        if self.refuses in answers:
            raise UserError("The chat is too long")
        return [Score(("t", "u"), np.array([-1.0, -2.0])) for _ in zip(chats, answers, strict=True)]

    def close(self) -> None:
        self.closed += 1


class Counts:
    """A suite with one figure; it leaves another out."""

    def __init__(self) -> None:
        self.contexts: list[SuiteContext] = []

    def measure(self, subject: Any, context: SuiteContext) -> Mapping[str, Measured]:
        self.contexts.append(context)
        context.progress("counting", 1, 2)
        context.leave_out("counts.other", "it has none")
        return {"one": mean_of([1.0, 0.0], ["a", "b"], "one", "of the suite")}


def rows_of(directory: Path, *rows: Any) -> EvaluationRows:
    directory.joinpath("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvaluationRows.of_files([str(directory / "rows.jsonl")])


def questions(*answers: str) -> list[dict[str, str]]:
    return [{"question": f"{n}?", "answer": answer} for n, answer in enumerate(answers)]


def measured(trial: Trial, suites: Any = (), count: int | None = None) -> tuple[Measurement, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return measure(trial, Asked(EXACT, Sampling(7), count, Events(events.append)), dict(suites)), events


def progress_in(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    return [(event["what"], event["done"], event["total"]) for event in events if event["event"] == "progress"]


def test_a_model_with_a_prompt_has_the_loss_of_answers_and_a_server_says_why_it_has_none(tmp_path: Path) -> None:
    prompted, server = Given("prompted", CausalLMHead()), Given("server")
    rows = rows_of(tmp_path, *questions("a", "b", "c"))
    trial = Trial(rows, [prompted, server], fold=2)  # type: ignore[list-item]
    found, events = measured(trial, count=2)
    side = found.sides["prompted"]
    assert side.losses is not None
    assert (side.losses.sums.tolist(), side.losses.counts.tolist()) == ([3.0] * 3, [2] * 3)
    assert list(side.units) == [task.source for task in rows.tasks(None)]
    assert {name: figure.value for name, figure in side.figures.items()} == {
        "loss": 1.5,
        "perplexity": pytest.approx(math.exp(1.5)),
        "exact_match": 0.5,
    }
    assert [answer.text for answer in side.answers] == ["a", "a"]
    assert (found.sides["server"].losses, list(found.sides["server"].figures)) == (None, ["exact_match"])
    assert found.left_out == {"loss of server": NO_LOG_PROBABILITIES}
    assert [task.expected for task in found.tasks] == ["a", "c"]
    assert found.suites == {"prompted": {}, "server": {}}
    assert progress_in(events) == [
        ("prompted: loss, fold 2", 0, 3),
        ("prompted: loss, fold 2", 3, 3),
        ("prompted: answers, fold 2", 0, 2),
        ("prompted: answers, fold 2", 2, 2),
        ("server: answers, fold 2", 0, 2),
        ("server: answers, fold 2", 2, 2),
    ]
    figures = [event for event in events if event["event"] == "figures"]
    assert [(event["model"], event["fold"], list(event["figures"])) for event in figures] == [
        ("prompted", 2, ["loss", "perplexity"]),
        ("prompted", 2, ["exact_match"]),
        ("server", 2, ["exact_match"]),
    ]
    loss = figures[0]["figures"]["loss"]
    assert (loss["value"], loss["rows"], loss["better"], loss["unit"]) == (1.5, 3, "lower", "nats per loss token")
    assert prompted.asked == [([task.chat for task in found.tasks], Sampling(7))]
    assert (prompted.closed, server.closed) == (1, 1)


def test_progress_of_losses_with_a_prompt_is_by_64_rows(tmp_path: Path) -> None:
    assert LOSS_TASKS == 64
    rows = rows_of(tmp_path, *questions(*["a"] * 130))
    found, events = measured(Trial(rows, [Given("one", CausalLMHead())]), count=1)  # type: ignore[list-item]
    assert [done for what, done, _ in progress_in(events) if what == "one: loss"] == [0, 64, 128, 130]
    losses = found.sides["one"].losses
    assert losses is not None
    assert len(losses.sums) == 130


def test_why_a_model_has_no_loss_is_said(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *questions("a", "b", "long"))
    refuses = Given("refuses", CausalLMHead(), refuses="long")
    other = Given("other", Seq2SeqLMHead())
    found, _ = measured(Trial(rows, [refuses, other]))  # type: ignore[list-item]
    source = rows.tasks(None)[2].source
    assert found.left_out == {
        "loss of refuses": f"{source}: The chat is too long",
        "loss of other": "the rows are for a model that ends in causal_lm, so that only the answers are alike",
    }
    assert [(side.losses, list(side.figures)) for side in found.sides.values()] == [(None, ["exact_match"])] * 2
    texts = Trial(rows_of(tmp_path, {"text": "raw"}), [Given("prompted", CausalLMHead())])  # type: ignore[list-item]
    found, events = measured(texts)
    assert found.left_out == {"loss of prompted": "raw text has no prompt before it"}
    assert progress_in(events) == [("prompted: loss", 0, 0), ("prompted: answers", 0, 0), ("prompted: answers", 0, 0)]
    assert not [event for event in events if event["event"] == "figures"], "none is emitted where there is none"


def test_forms_that_cannot_be_computed_are_left_out_but_not_the_first(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *questions("a"))
    good, bad = Given("good"), Given("bad", breaks=True)
    found, _ = measured(Trial(rows, [good, bad, good], are_forms=True))  # type: ignore[list-item]
    assert found.left_out == {"loss of good": NO_LOG_PROBABILITIES, "bad": "cannot be computed here"}
    assert (list(found.sides), list(found.suites)) == (["good"], ["good"])
    assert (good.closed, bad.closed) == (2, 1)
    for subjects, are_forms in (([bad, good], True), ([good, bad], False)):
        with pytest.raises(UserError, match="cannot be computed here"):
            measured(Trial(rows, subjects, are_forms=are_forms))  # type: ignore[arg-type]
    assert bad.closed == 3, "what fails is freed, too"


def test_suites_are_measured_with_the_tasks_and_each_is_emitted(tmp_path: Path) -> None:
    rows, suite, other = rows_of(tmp_path, *questions("a", "b")), Counts(), Counts()
    trial = Trial(rows, [Given("one")], run=tmp_path)  # type: ignore[list-item]
    found, events = measured(trial, {"counts": suite, "others": other}, count=1)
    assert {name: figure.value for name, figure in found.suites["one"].items()} == {
        "counts.one": 0.5,
        "others.one": 0.5,
    }
    assert found.left_out["counts.other of one"] == "it has none"
    assert progress_in(events)[-1] == ("one: counting", 1, 2)
    emitted = [event for event in events if event["event"] == "figures"]
    assert [list(event["figures"]) for event in emitted] == [["exact_match"], ["counts.one"], ["others.one"]]
    assert [(event["model"], event["fold"]) for event in emitted] == [("one", None)] * 3
    (context,) = suite.contexts
    assert (context.rows, context.run, context.count, context.sampling) == (rows, tmp_path, 1, Sampling(7))
    assert context.tasks == found.tasks
    found, _ = measured(Trial(None, [Given("one")]), {"counts": suite}, count=0)  # type: ignore[list-item]
    assert (found.sides, found.tasks, suite.contexts[-1].rows) == ({}, [], None)
    assert suite.contexts[-1].count is None, "without rows, a suite has all of its own"


@pytest.mark.parametrize(("head", "what"), [(None, "is a server"), (CausalLMHead(), "has a prompt")])
def test_rows_of_a_classifier_are_refused_for_what_reads_or_writes_chats(head: Any, what: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "label": "x"}) + "\n", encoding="utf-8")
    recipe = {"base": "embedded", "data": {"train": str(tmp_path / "rows.jsonl")}, "objective": "classification"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    rows = EvaluationRows.of_files([str(tmp_path / "rows.jsonl")], tmp_path)
    with pytest.raises(UserError, match=rf"^one {what}, and the rows are for a model that does not write text\.$"):
        measured(Trial(rows, [Given("one", head)]))  # type: ignore[list-item]


def test_batches_of_losses_are_as_large_as_the_recipe_says_or_2048_tokens(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *questions("a"))
    asked = Asked(EXACT, Sampling(7), None, Events())
    one = _OneModel(Given("one"), rows, asked, None)  # type: ignore[arg-type]
    assert one._budget == 2048
    train = rows.recipe.train.model_copy(update={"tokens_per_batch": 96})
    small = replace(rows, recipe=rows.recipe.model_copy(update={"train": train}))
    assert _OneModel(Given("one"), small, asked, None)._budget == 96  # type: ignore[arg-type]


def test_no_figures_are_no_event() -> None:
    events: list[Any] = []
    emit_figures(Events(events.append), "one", 3, {})
    assert events == []
    emit_figures(Events(events.append), "one", 3, {"a": mean_of([1.0, 0.0], ["a", "b"], "title", "about", "lower")})
    ((name, shown),) = events[0]["figures"].items()
    assert (events[0]["model"], events[0]["fold"], name) == ("one", 3, "a")
    assert shown.pop("interval")[0] < 0.5
    assert shown == {
        "title": "title", "explanation": "about", "better": "lower", "unit": "share", "value": 0.5, "rows": 2,
    }  # fmt: skip
