"""Toxic texts, by a classifier of the user's."""

import re

import pytest

from tunesmith.checks.toxicity import toxic_labels
from tunesmith.errors import UserError


@pytest.mark.parametrize(
    ("labels", "named", "expected"),
    [
        (("toxic", "severe_toxic", "neutral", "identity_hate"), "", {"toxic", "severe_toxic", "identity_hate"}),
        (("not toxic", "non-toxic", "not_toxic", "toxic"), "", {"toxic"}),
        (("LABEL_0", "LABEL_1"), "LABEL_1", {"LABEL_1"}),
    ],
)
def test_labels_that_say_toxic_count_or_the_one_that_is_named(
    labels: tuple[str, ...], named: str, expected: set[str]
) -> None:
    assert toxic_labels(labels, named, "m") == expected


@pytest.mark.parametrize("named", ["", "bad"])
def test_a_classifier_without_such_a_label_is_refused_with_its_labels(named: str) -> None:
    with pytest.raises(UserError, match=re.escape("Name one of its labels: m#LABEL_0|LABEL_1.")):
        toxic_labels(("LABEL_0", "LABEL_1"), named, "m")
