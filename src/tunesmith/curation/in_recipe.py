"""`data.clean` of a recipe: its training rows are cleaned before the first step."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.recipe import Recipe
from tunesmith.data.read import fingerprint
from tunesmith.errors import UserError
from tunesmith.run import Events, Subscriber, writing
from tunesmith.run_lock import turn_lock

if TYPE_CHECKING:
    from tunesmith.curation.clean import Cleaned

DIRECTORY = "cleaned"
"""In the current directory, beside `runs`: what is cleaned stays there with its ledger, and is used again."""


def cleaned_recipe(recipe: Recipe, subscribers: Sequence[Subscriber] = ()) -> tuple[Recipe, list[str]]:
    """The recipe with its training rows cleaned, as `data.clean` asks.

    Args:
        recipe: any.
        subscribers: receive `progress` events.

    Returns:
        The recipe, whose `data.train` is the cleaned file; and what to say about it.

    Raises:
        UserError: as `data_clean`; more rows are malformed than `data.max_malformed` allows; or there is a mix.
    """
    data = recipe.data
    if data.clean is False:
        return recipe, []
    from tunesmith.curation.clean import data_clean
    from tunesmith.curation.ledger import Ledger, ledger_path
    from tunesmith.curation.policy import policy

    if data.mix:
        raise UserError("data.clean cleans data.train. Clean the sources of data.mix first: tunesmith data clean.")
    actions = data.clean if isinstance(data.clean, dict) else {}
    against = data.held_out if isinstance(data.held_out, list) else []
    identity = [fingerprint([*data.train, *against], Path.cwd()), policy(actions), data.format, data.columns]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    target = Path(DIRECTORY) / f"{Path(data.train[0]).stem or 'rows'}-{key}.jsonl"
    with writing(target):
        target.parent.mkdir(exist_ok=True)
    events = Events(*subscribers)
    with turn_lock(
        target.parent, lambda: events.emit("progress", what="waiting for another cleaning", done=0, total=1)
    ):
        if not target.exists():
            found = data_clean(recipe, target, actions=actions, against=against, subscribers=subscribers)
            _refuse_malformed(found, data.max_malformed)
    counts = Ledger.open(ledger_path(target)).end["counts"]
    said = ", ".join(f"{count:,} {fate}" for fate, count in counts.items())
    cleaned = data.model_copy(update={"train": [str(target)], "clean": False})
    return recipe.model_copy(update={"data": cleaned}), [f"data.clean: {said}; see {ledger_path(target)}"]


def _refuse_malformed(found: "Cleaned", most: float) -> None:
    malformed = sum(done.rows for done in found.done if done.check == "malformed")
    if malformed > most * found.read:
        found.file.unlink()
        found.ledger.unlink()
        raise UserError(
            f"{malformed:,} of {found.read:,} rows are malformed, more than data.max_malformed ({most:.0%}) allows. "
            "tunesmith data check names them. Fix them, or raise that share."
        )
