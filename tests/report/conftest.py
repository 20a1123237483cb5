"""A run of a tiny model, trained once and copied for each test."""

import json
import shutil
from pathlib import Path

import pytest

import tunesmith


@pytest.fixture(scope="session")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    rows = directory / "rows.jsonl"
    lines = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(60)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(rows), "held_out": 0.2, "cache": False},
        "train": {"steps": 12, "tokens_per_step": 128, "precision": "fp32", "tensorboard": True},
    }
    return tunesmith.train(recipe, directory / "mine").directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "mine"))
