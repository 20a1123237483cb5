"""Files and recipes of what is evaluated."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import curated


def written(file: str | Path, rows: Sequence[Any]) -> str:
    """A file of JSON lines, as a recipe or an option names it."""
    return str(curated.write(Path(file), rows))


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A turn of a chat."""
    return {"role": role, "content": content, **more}


def recipe_in(directory: Path, objective: Any = "instruction", base: Any = "embedded", **data: Any) -> Path:
    """A directory with the recipe of a run that was not trained."""
    directory.mkdir(exist_ok=True, parents=True)
    recipe = {"base": str(base), "data": {"cache": False, **data}, "objective": objective, "train": {"steps": 1}}
    (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return directory
