"""Warnings about memory settings that have no effect."""

from pathlib import Path
from typing import Any

import tunesmith


def test_a_run_warns_that_offloading_has_no_effect_on_a_cpu(tiny_model: Path, tmp_path: Path, write_rows: Any) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.0, "max_length": 64},
        "train": {"steps": 1, "tokens_per_step": 128, "precision": "fp32", "offload_activations": True},
    }
    run = tunesmith.train(recipe, tmp_path / "run")
    warnings = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert warnings == ["train.offload_activations has no effect on a CPU: activations are already in its memory."]
