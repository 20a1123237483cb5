"""What is said of memory where there is nothing to be gained."""

from pathlib import Path
from typing import Any

import tunesmith


def test_offloading_on_a_cpu_is_said_to_be_for_nothing(tiny_model: Path, tmp_path: Path, write_rows: Any) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.0, "max_length": 64},
        "train": {"steps": 1, "tokens_per_step": 128, "precision": "fp32", "offload_activations": True},
    }
    run = tunesmith.train(recipe, tmp_path / "run")
    said = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert said == ["train.offload_activations: on a CPU they are in its memory already."]
