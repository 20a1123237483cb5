"""Texts that a classifier takes for toxic."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from tunesmith.checks.labeled import records_of
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck
from tunesmith.errors import UserError

_TOXIC = re.compile(r"toxic|hate|offens|abus|insult|obscen|threat", re.IGNORECASE)
_NOT = re.compile(r"\bno[nt]?(?:\b|_|(?=tox|hate|offens))|neutral", re.IGNORECASE)

BATCH = 256
"""Rows that are classified at once."""


def toxic_labels(labels: Sequence[str], named: str, model: str) -> frozenset[str]:
    """The labels that stand for a toxic text.

    Args:
        labels: of the classifier.
        named: the one that is named; empty: those whose names say it, such as `toxic` or `identity_hate`.
        model: the classifier, for messages.

    Raises:
        UserError: there is no such label.
    """
    if named:
        found = frozenset({named} & {*labels})
    else:
        found = frozenset(label for label in labels if _TOXIC.search(label) and not _NOT.search(label))
    if not found:
        what = f"no label {named}" if named else "no label whose name says that a text is toxic"
        raise UserError(f"--toxicity {model} has {what}. Name one of its labels: {model}#{'|'.join(labels)}.")
    return found


def _toxicity(table: Table) -> Iterator[Mark]:
    from tunesmith.inference.model import load

    name, label = table.models.classifier
    classifier = load(name)
    classifier.require("classify")
    toxic = toxic_labels(classifier.reference.fitted_head().labels, label, name)
    records = records_of(table)
    while batch := list(islice(records, BATCH)):
        places = [(row, place, text) for row, record in enumerate(batch) for place, text in record.places()]
        predictions = classifier.classify([text for _, _, text in places])
        worst: dict[int, tuple[float, str]] = {}
        for (row, place, _), found in zip(places, predictions, strict=True):
            for each in found:
                if each.label in toxic:
                    shown = (each.value, f"{each.label} ({each.value:.0%}) in {place}")
                    worst[row] = max(worst.get(row, shown), shown)
        yield from (Mark(batch[row].source, worst[row][1], (), worst[row][0]) for row in sorted(worst))


TOXICITY = TableCheck(
    "toxicity",
    "Toxic texts",
    "warning",
    "Remove the rows, unless the model is to recognize or to decline such texts: it learns to write what it reads.",
    _toxicity,
    when=lambda table: bool(table.models.toxicity) and table.records > 0,
)
