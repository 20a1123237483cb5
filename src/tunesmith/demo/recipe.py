"""The demo's directory and recipe: an ordinary recipe, written beside its data, as long as this machine is fast."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.planner.request import plan
from tunesmith.run import atomic_write
from tunesmith.run_lock import LOCK_FILE, refuse_locked, write_lock

ADVICE = "choose another one with --directory."
"""What a second demo in the same directory can do."""

RECIPE = """\
# What `tunesmith demo` trains: from a Python function to its JSON tool definition.
base: {base}
data:
  train: train.jsonl         # question, answer; functions of this Python installation
  held_out: [held_out.jsonl] # functions of packages that are not in train.jsonl
  replay: [prose.jsonl]      # Python's language reference and docstrings, against forgetting
  replay_share: 0.1          # of the tokens
  max_length: 512            # tokens
method: {method}
objective: {{kind: instruction}}
train:
  steps: {steps:<18} # what the plan expects of this machine in {seconds:.0f} seconds
  tokens_per_step: {tokens}
  learning_rate: {rate}
  evaluate_rows: 4           # few during the run; all afterwards
  seed: {seed}
"""


@dataclass(frozen=True)
class Settings:
    """How the demo trains a base.

    Attributes:
        method: as in the recipe.
        tokens: in a step.
        rate: the peak learning rate; a small model needs a larger one.
        seconds: of training that the number of steps is chosen for.
        steps: the fewest and the most.
    """

    method: str
    tokens: int
    rate: str
    seconds: float
    steps: tuple[int, int]


SETTINGS = {
    "embedded": Settings(
        method="{kind: full}  # the base is small",
        tokens=1024,
        rate="1e-3",
        seconds=75,
        steps=(40, 300),
    ),
    "smollm2-135m-instruct": Settings(
        method="{kind: lora, rank: 16, alpha: 32, last: 12}  # of 30 blocks: less to compute and less to forget",
        tokens=256,
        rate="4e-3",
        seconds=80,
        steps=(40, 160),
    ),
    "": Settings(method="{kind: lora, rank: 16, alpha: 32}", tokens=256, rate="1e-3", seconds=60, steps=(40, 300)),
}
"""By base; the empty name stands for every other."""


@contextmanager
def new_directory(directory: Path | None) -> Iterator[Path]:
    """Create `directory`, by default the first of runs/demo, runs/demo-2, … that does not exist, and lock it within the
    context.

    Raises:
        UserError: it exists and is not empty, another process writes it, or it cannot be created.
    """
    try:
        path = _first_free() if directory is None else directory
        refuse_locked(path, ADVICE)
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(_used(path)) from None
    except OSError as error:
        raise UserError(
            f"{directory or 'runs/demo'} cannot be created: {error.strerror}. Choose another one with --directory."
        ) from None
    with write_lock(path, ADVICE):
        if any(file.name != LOCK_FILE for file in path.iterdir()):
            raise UserError(_used(path))
        yield path


def _first_free() -> Path:
    """Create the first of the default directories that does not exist: two demos never get the same one."""
    for number in count(1):
        path = Path("runs") / ("demo" if number == 1 else f"demo-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _used(path: Path) -> str:
    return f"{path} exists and is not an empty directory. Choose another one with --directory."


def write_recipe(directory: Path, base: str, overrides: Sequence[str] = (), seed: int = 0) -> Recipe:
    """Write `recipe.yaml` beside the demo's rows. The number of steps follows from this machine's speed on these rows,
    which is measured.

    Args:
        directory: contains train.jsonl and held_out.jsonl.
        base: as in a recipe.
        overrides: `key.path=value` strings that replace fields of the recipe.
        seed: of the run.

    Returns:
        The recipe, with the overrides.

    Raises:
        UserError: the base cannot be loaded, or an override is not valid.
    """
    settings = SETTINGS.get(base, SETTINGS[""])
    fewest, most = settings.steps
    path = directory / "recipe.yaml"
    steps = fewest
    for _ in range(2):  # first to measure, then with the result
        text = RECIPE.format(
            base=base,
            method=settings.method,
            steps=steps,
            seconds=settings.seconds,
            tokens=settings.tokens,
            rate=settings.rate,
            seed=seed,
        )
        with atomic_write(path) as file:
            file.write(text)
        recipe = Recipe.load(path, list(overrides))
        if sets_steps(overrides):
            break
        steps = min(most, max(fewest, int(settings.seconds / plan(recipe=recipe).time.seconds_per_step)))
    return recipe


def sets_steps(overrides: Sequence[str]) -> bool:
    """Whether the overrides set the number of steps, so that it does not follow from the machine's speed."""
    return any(override.startswith("train.steps=") for override in overrides)
