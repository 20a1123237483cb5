"""The demo's directory and recipe: an ordinary recipe, written beside its data."""

import json
from pathlib import Path

from tunesmith.demo.docstrings import write_pairs
from tunesmith.errors import UserError
from tunesmith.run import atomic_write

RECIPE = """\
# What `tunesmith demo` trains: the first sentence of a docstring, from the object's name and signature.
base: embedded
data:
  train: train.jsonl         # question, answer; from this Python's standard library
  held_out: [held_out.jsonl] # modules that are not in train.jsonl
  max_length: 256            # tokens
method: {kind: lora, rank: 32, alpha: 64, target_modules: all-linear}
objective: {kind: instruction}
train:
  steps: 160
  tokens_per_step: 4096
  learning_rate: 2e-3        # a small model needs a larger rate than a large one
  evaluate_every: 40
  evaluate_rows: 200
  seed: 0
"""


def new_directory(directory: Path | None) -> Path:
    """Create `directory`, by default the first of runs/demo, runs/demo-2, … that does not exist.

    Raises:
        UserError: it exists and is not empty, or cannot be created.
    """
    numbered = (Path("runs") / ("demo" if number == 1 else f"demo-{number}") for number in range(1, 1_000_000))
    path = next(path for path in numbered if not path.exists()) if directory is None else directory
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty directory. Choose another one with --directory.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be created: {error.strerror}. Choose another one with --directory.") from None
    return path


def demo_recipe(directory: Path) -> tuple[Path, dict[str, int], dict[str, str]]:
    """Write data and recipe into `directory`.

    Returns:
        The recipe's path, the counts of `write_pairs`, and one of the training rows.
    """
    train, _, counts = write_pairs(directory)
    recipe = directory / "recipe.yaml"
    with atomic_write(recipe) as file:
        file.write(RECIPE)
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    example = next((row for row in rows if row["name"] == "shutil.copyfile"), rows[len(rows) // 2])
    return recipe, counts, example
