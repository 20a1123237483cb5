"""The demo's folder and recipe: a recipe like any other, written beside its data."""

import json
from pathlib import Path

from tunesmith.demo.docstrings import write_pairs
from tunesmith.errors import UserError
from tunesmith.run import atomic_write

RECIPE = """\
# What `tunesmith demo` trains: the first sentence of a docstring, from the thing's name and signature.
base: embedded
data:
  train: train.jsonl         # question, answer; from this Python's standard library
  held_out: [held_out.jsonl] # modules that train.jsonl has nothing of
  max_length: 256            # tokens
method: {kind: lora, rank: 32, alpha: 64, target_modules: all-linear}
objective: {kind: instruction}
train:
  steps: 160
  tokens_per_step: 4096
  learning_rate: 2e-3        # a small model takes, and needs, larger steps than a large one
  evaluate_every: 40
  evaluate_rows: 200
  seed: 0
"""


def new_directory(directory: Path | None) -> Path:
    """The folder as given, or the first of runs/demo, runs/demo-2, … that is not there yet.

    Raises:
        UserError: the given one holds something, or cannot be made.
    """
    numbered = (Path("runs") / ("demo" if number == 1 else f"demo-{number}") for number in range(1, 1_000_000))
    place = next(each for each in numbered if not each.exists()) if directory is None else directory
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is there already and is not an empty directory. Name another one with --folder.")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place} cannot be made: {error.strerror}. Name another one with --folder.") from None
    return place


def demo_recipe(place: Path) -> tuple[Path, dict[str, int], dict[str, str]]:
    """Write data and recipe into the folder.

    Returns:
        The recipe's path, the counts of `write_pairs`, and one of the training rows.
    """
    train, _, counts = write_pairs(place)
    recipe = place / "recipe.yaml"
    with atomic_write(recipe) as file:
        file.write(RECIPE)
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    example = next((row for row in rows if row["name"] == "shutil.copyfile"), rows[len(rows) // 2])
    return recipe, counts, example
