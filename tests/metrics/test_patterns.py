"""Answers that match a pattern."""

import pytest

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named


def test_a_pattern_is_found_anywhere_unless_it_is_anchored() -> None:
    anywhere, whole = metric_named(r"regex:\d{4}"), metric_named(r"regex:\A[A-Z]+\Z")
    assert anywhere.score is not None
    assert whole.score is not None
    assert [anywhere.score(answer, "") for answer in ("in 1999", "in 99", "")] == [1, 0, 0]
    assert [whole.score(answer, "") for answer in ("YES", "YES, SIR", "YES\nNO")] == [1, 0, 0]


def test_a_pattern_may_contain_colons() -> None:
    metric = metric_named("regex:name: .+: .+")
    assert metric.score is not None
    assert metric.score("name: a: b", "") == 1
    assert metric.title == "matches name: .+: .+"


def test_a_pattern_that_is_none_or_takes_for_ever_is_refused() -> None:
    with pytest.raises(UserError, match=r"--metric regex:\(a is not a regular expression"):
        metric_named("regex:(a")
    with pytest.raises(UserError, match=r"needs a setting: --metric 'regex:PATTERN'"):
        metric_named("regex")
    slow = metric_named("regex:^(a|aa)+$")
    assert slow.score is not None
    with pytest.raises(UserError, match="longer than 1 s on an answer of 60 characters"):
        slow.score("a" * 59 + "!", "")
