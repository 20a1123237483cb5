"""Names of persons, places and organizations, by presidio: an extra, because it needs a model of the language."""

from functools import cache
from typing import Any

from tunesmith.checks.check import Detail, RowCheck
from tunesmith.checks.finding import Finding, described
from tunesmith.checks.record import Record
from tunesmith.errors import UserError

SURE = 0.8
"""The score from which a name counts."""

LANGUAGE = "en"
"""Of the model that presidio loads by default (spaCy's en_core_web_lg)."""


def names(text: str) -> list[Finding]:
    """Names of persons in an English text. Use it as `find` of `mask` to replace them.

    Args:
        text: any text.

    Raises:
        UserError: presidio, or its model, is not installed.
    """
    found = _analyzer().analyze(text, language=LANGUAGE, entities=["PERSON"], score_threshold=SURE)
    return [Finding("name", each.start, each.end, text[each.start : each.end]) for each in found]


def _find(record: Record) -> Detail | None:
    return described({place: names(text) for place, text in record.places()})


@cache
def _analyzer() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError:
        raise UserError('The check names needs presidio: pip install "tunesmith[presidio]".') from None
    try:
        return AnalyzerEngine()
    except (OSError, SystemExit) as error:
        raise UserError(
            f"presidio has no language model ({error}). Install it: python -m spacy download en_core_web_lg."
        ) from None


NAMES = RowCheck(
    name="names",
    title="Names of persons",
    severity="note",
    advice="Replace the names of persons who have not agreed. Names of authors and of public persons are found too.",
    find=_find,
)
