"""Contradictions within an answer, by a model of natural language inference."""

from itertools import combinations
from pathlib import Path

import pytest
from transformers import pipeline

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.contradiction import sentences
from tunesmith.metrics.metric import Case, measured

ANSWERS = [
    "The shop is open. The shop is closed. Come at nine.",
    "It is red.\nIt is blue and green.",
    "One. Two! Three? Four.",
    "Only one sentence.",
    "",
]


def test_an_answer_contradicts_itself_if_transformers_says_so_of_two_of_its_sentences(reading: Path) -> None:
    cases = [Case(str(row), "", answer, "") for row, answer in enumerate(ANSWERS)]
    theirs = pipeline("text-classification", str(reading / "classes"), device="cpu")
    seen = set()
    for label in ("no", "perhaps", "yes"):
        metric = metric_named(f"contradiction:classes#{label.upper()}", reading)
        found = measured({"contradiction": metric}, cases)["contradiction"]
        expected = []
        for answer in ANSWERS:
            pairs = [{"text": one, "text_pair": other} for one, other in combinations(sentences(answer), 2)]
            expected.append(float(any(each["label"] == label for each in theirs(pairs))) if pairs else 0.0)
        assert found.values is not None
        assert found.values.tolist() == expected
        assert (found.better, expected[3:]) == ("lower", [0.0, 0.0])
        seen |= {*expected[:3]}
    assert seen == {0.0, 1.0}


def test_sentences_end_at_periods_and_line_breaks() -> None:
    assert sentences("It costs 3.5 euros. Really?  Yes!\n- one\n- two") == [
        "It costs 3.5 euros.", "Really?", "Yes!", "- one", "- two",
    ]  # fmt: skip
    assert sentences("これは赤い。これは青い。") == ["これは赤い。", "これは青い。"]
    assert sentences(" \n ") == []


def test_a_model_without_the_label_or_without_classes_is_refused(reading: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"classes has no label contradiction. Name its own .*#LABEL: no, perhaps, yes"):
        metric_named("contradiction:classes", reading)
    with pytest.raises(UserError, match=r"llama does not classify pairs of texts. Name an NLI model"):
        metric_named(f"contradiction:{tiny_model}")
