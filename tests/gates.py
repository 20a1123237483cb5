"""Gates for tests: a file with limits, and which of them a model does not meet."""

from pathlib import Path
from typing import Any

import yaml


def gate_file(directory: Path, *limits: dict[str, Any]) -> Path:
    """Write a gate, and return its path."""
    file = directory / "gate.yaml"
    file.write_text(yaml.safe_dump({"limits": list(limits)}), encoding="utf-8")
    return file


def not_met(result: dict[str, Any], model: str) -> set[str]:
    """The figures of a model whose limits are failed or undecided. Every limit was checked."""
    limits = [limit for limit in result["gate"]["limits"] if limit["model"] == model]
    assert limits
    return {limit["figure"] for limit in limits if limit["outcome"] != "met"}
