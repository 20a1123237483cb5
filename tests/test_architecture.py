"""The picture of the layers in docs/architecture.md is the one that lint-imports checks."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_picture_of_the_layers_is_the_checked_one() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (checked,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = page.partition("## Layers")[2].split("```")[1].splitlines()
    module = r"[a-z_]+(?:\.[a-z_]+)?"
    names = [match[0] for line in lines if (match := re.match(rf"{module}(?: \| {module})*", line))]
    assert [{f"tunesmith.{name}" for name in line.split(" | ")} for line in names] == [
        set(layer.split(" | ")) for layer in checked
    ]
