"""Forgetting: the figures are their definitions, and a model that was trained too hard has forgotten."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import gate_file, not_met

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.suites.forgetting import CHARACTERS, FEWEST, PIECES, divergence, general_loss, general_texts
from tunesmith.inference.score import Score
from tunesmith.subjects.subject import Answer


def scored(*logs: float, tokens: str = "abcdef") -> Score:
    return Score(tuple(tokens[: len(logs)]), np.array(logs))


def test_the_loss_on_general_text_is_bits_of_a_byte() -> None:
    found = general_loss(["four", "züm"], [scored(-1.0, -2.0), scored(-0.5)])
    assert found.value == pytest.approx(3.5 / math.log(2) / 8)
    assert found.of(np.array([1, 1])) == pytest.approx(0.5 / math.log(2) / 4)
    assert (found.better, found.unit) == ("lower", "bits")


def test_the_divergence_is_the_known_one_of_two_distributions_and_leaves_out_ends_that_were_not_sampled() -> None:
    first, other = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    drawn = np.random.default_rng(0).choice(3, 40_000, p=first)
    before, after = (scored(*np.log(each[drawn]), tokens="x" * len(drawn)) for each in (first, other))
    exact = float((first * np.log(first / other)).sum())
    found = divergence([Answer("x")], [before], [after], ["one"])
    assert found is not None
    assert found.value == pytest.approx(exact, rel=0.02)
    one, two = scored(-1.0, -1.0, -9.0), scored(-1.0, -1.0, -1.0)
    for reason, expected in (("length", 0.0), ("stop", (math.exp(8) - 1 - 8) / 3)):
        found = divergence([Answer("ab", 2, reason)], [one], [two], ["one"])
        assert found is not None
        assert found.value == pytest.approx(expected)
    assert divergence([Answer("ab")], [one], [scored(-1.0, -1.0)], ["one"]) is None, "tokens differ"


def test_general_text_is_of_pieces_of_prose_and_of_a_file_of_ones_own(tmp_path: Path) -> None:
    own = general_texts(None)
    assert len(own) == len(set(own)) == PIECES
    assert all(len(text.split()) >= 12 and len(text) <= CHARACTERS and text[0].isalpha() for text in own)
    file = tmp_path / "prose.txt"
    tale = "Once upon a time there was a king\nwho had three daughters and one horse {}."
    tales = "\n \n".join(tale.format(number) for number in range(FEWEST))  # as WikiText separates them
    file.write_text(f"Title\n\n{tales}", encoding="utf-8")
    assert general_texts(file) == [" ".join(tale.format(number).split()) for number in range(FEWEST)]
    endless = " ".join(f"word{number}" for number in range(600))
    file.write_text(endless, encoding="utf-8")
    assert " ".join(general_texts(file)) == endless
    file.write_text(f"Title\n\n{tale}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has 1 paragraphs of 12 words or more, too few .* with at least 8"):
        general_texts(file)
    with pytest.raises(UserError, match=r"The general text .*none.txt cannot be read"):
        evaluate("run", suites=["forgetting"], suite_options={"forgetting": {"general": str(tmp_path / "none.txt")}})


def test_the_loss_is_that_of_the_users_text_if_one_is_named(tiny_model: Path, tmp_path: Path) -> None:
    prose = [f"Long ago there was a king who had {number} daughters and only one horse." for number in range(9)]
    (tmp_path / "prose.txt").write_text("\n\n".join(prose), encoding="utf-8")
    own = {"forgetting": {"general": str(tmp_path / "prose.txt")}}
    figures = evaluate(tiny_model, 9, suites=["forgetting"], suite_options=own)["models"]["llama"]
    total = sum(score.total for score in tunesmith.load(tiny_model).score(prose))
    expected = -total / math.log(2) / sum(len(text) for text in prose)
    assert figures["forgetting.general_loss"]["value"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Runs by learning rate: one that barely moves the model, and one that leaves nothing as it was."""
    directory = tmp_path_factory.mktemp("forgetting")
    rows = [f'{{"question": "{n}?", "answer": "{"0123456789"[n % 10] * 8}"}}\n' for n in range(40)]
    (directory / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.2, "cache": False},
        "method": {"kind": "full"},
    }
    runs = {}
    for rate in (1e-6, 2e-2):
        recipe["train"] = {"steps": 15, "tokens_per_step": 512, "learning_rate": rate, "precision": "fp32"}
        runs[rate] = tunesmith.train(recipe, directory / f"run-{rate}").directory
    return runs


def test_a_gate_on_forgetting_fails_a_model_that_was_trained_too_hard_and_passes_one_that_barely_moved(
    trained: dict[float, Path], tmp_path: Path
) -> None:
    gate = gate_file(
        tmp_path,
        {"figure": "forgetting.general_loss", "difference": True, "at_most": 0.1},
        {"figure": "forgetting.general_divergence", "at_most": 0.1},
    )
    found = {
        rate: evaluate(run, 12, suites=["forgetting"], max_new_tokens=4, gate=gate) for rate, run in trained.items()
    }
    assert not_met(found[2e-2], "tuned") == {"forgetting.general_loss", "forgetting.general_divergence"}
    assert not_met(found[1e-6], "tuned") == set()
    gentle, hard = (found[rate]["models"]["tuned"] for rate in trained)
    base = found[2e-2]["models"]["base"]
    assert set(base) & {"forgetting.general_unchanged", "forgetting.general_divergence"} == set()
    rise = found[2e-2]["differences"]["tuned"]["forgetting.general_loss"]
    assert rise["interval"][0] > 0.5, "bits of a byte"
    assert rise["verdict"] == "worse"
    assert abs(found[1e-6]["differences"]["tuned"]["forgetting.general_loss"]["value"]) < 0.01
    assert gentle["forgetting.general_unchanged"]["value"] > 0.8 > 0.1 > hard["forgetting.general_unchanged"]["value"]
    assert 0 <= gentle["forgetting.general_divergence"]["value"] < 1e-3
    assert hard["forgetting.general_divergence"]["interval"][0] > 0.3
    assert hard["forgetting.general_unchanged"]["rows"] == 12
