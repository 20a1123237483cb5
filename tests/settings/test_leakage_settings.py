"""The figures without leaked rows are those of the rows that are left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import output_of
from curated import sentence, write
from settings_coverage import shows

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.statistics.measured import Measured, mean_of


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of its six held-out rows are among the rows that it was trained on."""
    here = tmp_path_factory.mktemp("leaky")
    train = [{"question": f"What is {sentence(n, 6)}?", "answer": f"{sentence(n + 100, 4)}."} for n in range(12)]
    held_out = [{"question": f"What is {sentence(n, 6)}?", "answer": f"{sentence(n, 4)}."} for n in range(50, 56)]
    held_out[1], held_out[4] = train[3], {**train[7], "answer": "Another one."}
    data = {"train": str(write(here / "train.jsonl", train)), "held_out": [str(write(here / "held.jsonl", held_out))]}
    write(here / "clean.jsonl", [row for at, row in enumerate(held_out) if at not in (1, 4)])
    tunesmith.train(
        {"base": str(tiny_model), "data": data, "method": "lora", "train": {"steps": 2, "precision": "fp32"}},
        here / "run",
    )
    return here / "run"


def test_figures_without_leaked_rows_are_those_of_the_others(run: Path) -> None:
    found = evaluate(run, 6, 4, leakage=True)
    leakage = found["leakage"]
    assert (leakage["rows"], leakage["leaked"], leakage["training_rows"]) == (6, 2, 12)
    assert [each["source"].rpartition("/")[2] for each in leakage["leaks"]] == ["held.jsonl row 2", "held.jsonl row 5"]
    alone = evaluate(run, 6, 4, data=run.parent / "clean.jsonl")
    for model, figures in alone["models"].items():
        for name, figure in figures.items():
            assert leakage["models"][model][name]["rows"] == figure["rows"] == 4
            assert leakage["models"][model][name]["value"] == pytest.approx(figure["value"])
            assert leakage["models"][model][name]["interval"] == pytest.approx(figure["interval"])
    assert found["models"]["tuned"]["loss"]["rows"] == 6
    assert evaluate(run, 6, 4)["leakage"] is None


@shows("tunesmith evaluate --leakage")
def test_the_terminal_and_the_page_show_both(run: Path) -> None:
    printed = output_of("evaluate", run, "--rows", 6, "--max-new-tokens", 4, "--leakage")
    assert "without leaked rows" in printed
    assert "Leaked: 2 of the 6 rows, compared with 12" in " ".join(printed.split())
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "without leaked rows" in page
    assert json.loads((run / "evaluation.json").read_text())["leakage"]["leaked"] == 2


def test_models_without_a_run_are_refused(tiny_model: Path, run: Path) -> None:
    with pytest.raises(UserError, match="Name a run among the models"):
        evaluate(tiny_model, 2, 4, data=run.parent / "clean.jsonl", leakage=True)


@pytest.mark.parametrize("kind", ["mean", "other"])
def test_a_figure_of_some_rows_is_that_of_these_rows_alone(kind: str) -> None:
    values, units, some = np.array([1.0, 2.0, 4.0, 9.0]), ["a", "b", "c", "d"], np.array([0, 2, 3])

    def of(data: Any) -> Any:
        return lambda rows: float(np.median(data[rows]))

    if kind == "mean":
        whole, part = mean_of(values, units, "x", "x"), mean_of(values[some], ["a", "c", "d"], "x", "x")
    else:
        whole, part = Measured("x", "x", of(values), units), Measured("x", "x", of(values[some]), ["a", "c", "d"])
    assert whole.on(some).estimate == part.estimate
    assert list(whole.on(some).units) == ["a", "c", "d"]
