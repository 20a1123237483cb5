"""The rows of a search: those that candidates are compared on, those that may be examples, and the held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.checks.near_duplicates import near_duplicates
from tunesmith.config.data import Data
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.subjects import SubjectName
from tunesmith.objectives.instruction import Instruction
from tunesmith.prompting.race import FEWEST
from tunesmith.prompting.shots import first_exchange, last_question

HELD_OUT = 0.2
"""Share of a file's rows that is held out. The rows that a recipe holds out by a smaller share are among them, since a
hash of the content decides."""


@dataclass(frozen=True)
class SearchRows:
    """Training rows, parted at random, and held-out rows.

    Attributes:
        origin: where they come from, in words.
        held_out: not answered until the end.
        development: training rows that candidates answer.
        pool: the other training rows, which may be shown as examples, each a question and its answer.
        near_held_out: training rows that are no examples since their question is nearly one of the held-out ones.
    """

    origin: str
    held_out: EvaluationRows
    development: Sequence[Example]
    pool: Sequence[Example]
    near_held_out: int


def recipe_of(model: str, source: str | Path | None) -> tuple[str, Recipe]:
    """Whose rows a search is on.

    Args:
        model: its name; if it is a run, its own rows are the default.
        source: a recipe, a run, or a file of rows; None: the model's.

    Returns:
        Its name, and the recipe.

    Raises:
        UserError: there is none, or its rows are held out fold by fold.
    """
    own = SubjectName.parse(model).run
    path = own if source is None else Path(source)
    if path is None:
        raise UserError(f"{model} is no run, so it has no rows. Name a recipe or a file of rows after it.")
    file = path / "recipe.yaml" if (path / "recipe.yaml").exists() else path
    if file.suffix not in (".yaml", ".yml"):
        data = Data(train=[str(source)], held_out=HELD_OUT, max_length=2**17)
        return path.name, Recipe(data=data, objective=Instruction())
    recipe = Recipe.load(file)
    if recipe.data.folds is not None:
        raise UserError(f"{file}: data.folds holds every row out once, so no row is left to search on. Set held_out.")
    if not recipe.objective.head.generates_text:
        raise UserError(f"{file}: objective: {recipe.objective.kind} writes no text, so there is no prompt to search.")
    return path.name, recipe


def split_rows(origin: str, recipe: Recipe, count: int, needs_pool: bool, seed: int) -> SearchRows:
    """Part a recipe's rows.

    Args:
        origin: its name.
        recipe: whose rows they are.
        count: the most development rows.
        needs_pool: whether examples are shown, so that half of the training rows are kept for them.
        seed: of the parting.

    Returns:
        The rows.

    Raises:
        UserError: there are too few, none is held out, or they are no chats.
    """
    held_out = EvaluationRows(f"held-out rows of {origin}", recipe)
    training = [row for row in held_out.training_examples if row.messages is not None and not row.tools]
    if not any(row.messages is not None for row in held_out.examples):
        raise UserError(f"{origin} has no held-out chats, on which the winner is measured. Set data.held_out.")
    most = len(training) // 2 if needs_pool else len(training)
    if most < FEWEST:
        needed = 2 * FEWEST if needs_pool else FEWEST
        raise UserError(f"{origin} has {len(training):,} training chats, and a search needs {needed}. Give more rows.")
    order = np.random.default_rng(seed).permutation(len(training))
    development = [training[index] for index in sorted(order[: min(count, most)])]
    others = [training[index] for index in sorted(order[min(count, most) :])]
    plain = [each for row in others if (each := first_exchange(row)) is not None]
    far = apart_from(plain, held_out.examples)
    return SearchRows(origin, held_out, development, far, len(plain) - len(far))


def apart_from(rows: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The rows whose question is no near-duplicate of another row's.

    Args:
        rows: chats, in order.
        others: chats that they are compared with.

    Returns:
        Those rows, in order.
    """
    questions, other_questions = ([last_question(row.messages or ()) for row in side] for side in (rows, others))
    near = {found.text for found in near_duplicates(questions, other_questions)}
    return [row for index, row in enumerate(rows) if index not in near]
