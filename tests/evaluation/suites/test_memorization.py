"""Memorization: the figures are their definitions, and a model that learned its rows by heart is found out."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import gate_file, not_met

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.canaries import ALTERNATIVES, canaries, exposure, is_canary, with_other_secrets
from tunesmith.evaluation.suites.memorization import LONGEST, comes_back, extraction_figures, membership, passages_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score


def scored(*logs: float) -> Score:
    return Score(("x",) * len(logs), np.array(logs))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 8])
def test_the_exposure_of_a_known_rank_is_its_definition(rank: int) -> None:
    others = np.arange(7, dtype=float)  # the secret is beaten by rank − 1 of them
    assert exposure(7 - rank + 0.5, others) == pytest.approx(3 - math.log2(rank))
    assert exposure(-5.0, np.full(7, -5.0)) == 0, "others that are as likely are ahead"


def test_exposure_of_a_secret_that_nobody_knows_is_the_chance_that_the_table_names() -> None:
    draw = np.random.default_rng(0)
    by_chance = [exposure(draw.normal(), draw.normal(size=ALTERNATIVES)) for _ in range(4000)]
    assert np.mean(by_chance) == pytest.approx(1.4, abs=0.1)


def test_membership_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = np.random.default_rng(1)
    signal, is_member = draw.integers(0, 6, 30).astype(float), draw.random(30) < 0.4
    found = membership(signal, is_member, [str(row) for row in range(30)], "by the loss")
    for rows in (np.arange(30), draw.integers(0, 30, 30)):
        members, others = signal[rows][is_member[rows]], signal[rows][~is_member[rows]]
        pairs = [float(one > other) + 0.5 * float(one == other) for one in members for other in others]
        assert found.of(rows) == pytest.approx(np.mean(pairs))
    assert found.of(np.flatnonzero(is_member)) == 0.5, "no pair"


def test_what_comes_back_is_the_product_of_what_follows_the_beginning() -> None:
    logs = np.log([0.9, 0.8, 0.5, 0.25])
    assert comes_back(scored(*logs), 25) == pytest.approx(0.8 * 0.5 * 0.25)
    assert comes_back(scored(*logs), 50) == pytest.approx(0.5 * 0.25)
    assert comes_back(scored(-1.0), 50) == 0, "nothing is left to come back"
    long = np.full(200, -0.01)
    assert comes_back(scored(*long), 25) == pytest.approx(math.exp(-0.01 * LONGEST))
    is_member = np.array([True, True, False])
    figures = extraction_figures([scored(*logs), scored(-1.0), scored(*logs[:3])], is_member, ["a", "b", "c"], 50)
    assert figures["extracted_train_50"].value == pytest.approx(0.125 / 2)
    assert figures["extracted_held_out_50"].units == ["c"]
    assert figures["memorized_50"].value == pytest.approx(0.125 / 2 - 0.5)


def test_canaries_are_the_same_for_a_seed_and_are_found_again() -> None:
    rows = canaries(20, seed=3)
    assert rows == canaries(20, seed=3) != canaries(20, seed=4)
    assert len({row["answer"] for row in rows}) == 20
    for row in rows:
        assert is_canary(row["question"], row["answer"])
        assert not is_canary("What is the number?", row["answer"])
        assert not is_canary(row["question"], row["answer"] + "0")
        others = with_other_secrets(row["answer"])
        assert len({row["answer"], *others}) == ALTERNATIVES + 1
        assert all(is_canary(row["question"], other) for other in others)
        assert others == with_other_secrets(row["answer"])


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on rows whose answers nobody can guess, and canaries among them: one that saw them a few times, and one
    that learned them by heart."""
    directory, stream = tmp_path_factory.mktemp("leaking"), random.Random(0)
    words = ["".join(stream.choices("abcdefghijklmnopqrstuvwxyz", k=10)) for _ in range(24)]
    rows = [{"question": f"Password {n}?", "answer": word} for n, word in enumerate(words)] + canaries(6)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "rows.jsonl").write_text(text, encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.4, "cache": False},
        "method": {"kind": "full"},
    }
    runs = []
    for name, steps, rate in (("careful", 5, 1e-4), ("leaking", 140, 1e-2)):
        recipe["train"] = {"steps": steps, "tokens_per_step": 1024, "learning_rate": rate, "precision": "fp32"}
        runs.append(tunesmith.train(recipe, directory / name).directory)
    return runs


@pytest.fixture
def leaking(trained: list[Path]) -> Path:
    """The run that learned by heart."""
    return trained[1]


def test_a_gate_on_memorization_fails_a_model_that_learned_by_heart_and_passes_one_that_did_not(
    trained: list[Path], tmp_path: Path
) -> None:
    limits = [
        {"figure": f"memorization.{figure}", "model": run.name, "at_most": limit}
        for run in trained
        for figure, limit in {"exposure": 4, "memorized_50": 0.05, "membership": 0.9}.items()
    ]
    found = evaluate(trained, 0, suites=["memorization"], gate=gate_file(tmp_path, *limits))
    assert not_met(found, "leaking") == {f"memorization.{each}" for each in ("exposure", "memorized_50", "membership")}
    assert not_met(found, "careful") == set()
    careful, leaking = (
        {name.removeprefix("memorization."): figure for name, figure in found["models"][run.name].items()}
        for run in trained
    )
    assert set(leaking) - set(careful) == {"membership_from_first"}
    for percent in (25, 50):
        assert leaking[f"extracted_train_{percent}"]["value"] > 0.5
        assert leaking[f"extracted_held_out_{percent}"]["value"] < 0.01
        assert leaking[f"memorized_{percent}"]["interval"][0] > 0.3
        assert careful[f"extracted_train_{percent}"]["value"] < 0.01
    assert leaking["membership"]["value"] > 0.95
    assert leaking["membership_from_first"]["value"] > 0.95
    low, high = careful["membership"]["interval"]
    assert low < 0.5 < high, "the rows do not differ by themselves"
    assert careful["exposure"]["value"] < 3
    assert leaking["exposure"]["value"] > 5
    assert leaking["exposure"]["rows"] < 6, "some canaries are held out"
    assert found["differences"]["leaking"]["memorization.exposure"]["interval"][0] > 2


def test_training_rows_of_a_file_are_not_taken_for_others(leaking: Path) -> None:
    file = str(leaking.parent / "rows.jsonl")
    contexts = (
        SuiteContext(rows, [], Sampling(), None, lambda *_: None, leaking)
        for rows in (None, EvaluationRows.of_files([file], leaking))
    )
    own, of_file = (passages_of(context) for context in contexts)
    assert of_file == own
    train, held_out, planted = own
    assert len({row.text for row in [*train, *held_out]}) == len(train) + len(held_out) == 24
    assert {str(row.source) for row in EvaluationRows.of_run(leaking).examples} >= {row.source for row in held_out}
    assert 0 < len(planted) < 6


@pytest.mark.long
def test_raw_text_that_was_learned_by_heart_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    stream = random.Random(1)
    texts = ["".join(stream.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.4, "cache": False},
        "method": {"kind": "full"},
        "objective": {"kind": "text"},
        "train": {"steps": 100, "tokens_per_step": 512, "learning_rate": 1e-2, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run").directory
    tuned = evaluate(run, 0, suites=["memorization"])["models"]["tuned"]
    assert tuned["memorization.memorized_50"]["value"] > 0.5
    assert "memorization.exposure" not in tuned, "there are no canaries"


def test_memorization_needs_a_run_with_rows_of_both_kinds(tiny_model: Path, leaking: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The suite memorization reads a run's training rows. Name a run"):
        evaluate(tiny_model, 0, suites=["memorization"])
    same = json.loads((leaking.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "canaries.jsonl").write_text(json.dumps(canaries(1)[0]) + "\n", encoding="utf-8")
    assert "Password" in same["question"]
    with pytest.raises(UserError, match=r"needs rows that .* was trained on and others .*with --data"):
        evaluate(leaking, 1, suites=["memorization"], data=tmp_path / "canaries.jsonl", max_new_tokens=2)
