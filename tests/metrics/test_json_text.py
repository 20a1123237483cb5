"""Scores of answers that should be JSON: what counts as JSON, and which fields are right."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.json_text import field_f1, is_json, parsed_json, valid_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = VALUES.filter(lambda value: isinstance(value, dict | list))


@pytest.fixture(scope="module")
def schema_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("schemas") / "answer.schema.json"
    file.write_text(json.dumps(SCHEMA))
    return file


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        (' [true]\n', [True]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('\n```JSON\n{"a": 1}```\n', {"a": 1}),
        ('```\n[1,\n 2]\n```', [1, 2]),
        ("{}", {}),
    ],
)  # fmt: skip
def test_an_object_or_array_is_json_also_in_a_fence(answer: str, value: Any) -> None:
    assert parsed_json(answer) == value
    assert is_json(answer)
    assert valid_json(answer, "") == 1


@pytest.mark.parametrize(
    "answer",
    [
        "", "yes", "7", '"a"', "null", "true",  # no object and no array
        '{"a": 1', "{'a': 1}", '{"a": 1,}', '{"a": 1} {"a": 1}', "[NaN]", "[-Infinity]",  # not valid
        'Here it is: {"a": 1}', 'Here:\n```json\n{"a": 1}\n```', '```yaml\n{"a": 1}\n```',  # not JSON alone
        "[" * 100_000, "[" + "9" * 5000 + "]",  # as a model writes in a loop
    ],
)  # fmt: skip
def test_anything_else_is_not_json(answer: str) -> None:
    assert parsed_json(answer) is None
    assert not is_json(answer)
    assert valid_json(answer, '{"a": 1}') == 0
    assert field_f1(answer, '{"a": 1}') == 0
    assert field_f1('{"a": 1}', answer) == 0


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ('{"b": 2, "a": 1}', '{"a": 1, "b": 2}', 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1),
        ('{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1}', 1 / 2),
        ('{"a": 1}', '{"a": 2}', 0),
        ('{"a": 1}', '{"b": 1}', 0),
        ('{"a": {"b": [1, 2], "c": "x"}}', '{"a": {"b": [1, 3], "c": "x"}}', 2 / 3),
        ("[1, 2]", "[2, 1]", 0),
        ('["0"]', '{"0": "0"}', 0),
        ("[1]", "[1.0]", 1),
        ("[1]", "[true]", 0),
        ('["1"]', "[1]", 0),
        ("[null]", '["null"]', 0),
        ('{"a": {}}', '{"a": {}, "b": []}', 2 / 3),
        ('{"a": {}}', '{"a": []}', 0),
        ("{}", "{}", 1),
        ("{}", "[]", 0),
    ],
)
def test_the_score_is_the_f1_of_paths_and_values(answer: str, expected: str, score: float) -> None:
    assert field_f1(answer, expected) == pytest.approx(score)


@given(one=DOCUMENTS, other=DOCUMENTS)
def test_the_score_is_symmetric_and_1_only_for_equal_documents(one: Any, other: Any) -> None:
    score = field_f1(json.dumps(one), json.dumps(other, indent=2))
    assert score == field_f1(json.dumps(other), json.dumps(one))
    assert 0 <= score <= 1
    assert (score == 1) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_deeply_nested_json_is_scored() -> None:
    deep = "[" * 400 + "1" + "]" * 400
    assert field_f1(deep, deep) == 1


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}


@given(value=VALUES | st.fixed_dictionaries({"n": VALUES}))
def test_answers_are_valid_by_a_schema_as_jsonschema_says(value: Any, schema_file: Path) -> None:
    metric = metric_named(f"schema:{schema_file.name}", schema_file.parent)
    assert metric.score is not None
    theirs = isinstance(value, dict | list) and jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert metric.score(json.dumps(value), "") == theirs


def test_only_json_is_valid_by_a_schema(schema_file: Path) -> None:
    metric = metric_named(f"schema:{schema_file}")
    assert metric.score is not None
    assert [metric.score(answer, "") for answer in ('```json\n{"n": 1}\n```', '{"n": 1', "n: 1", "")] == [1, 0, 0, 0]
    assert metric.title == "valid by answer.schema.json"


def test_a_file_that_is_no_schema_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"properties": {"a": {"type": "text"}}}')
    (tmp_path / "broken.json").write_text("{")
    for name, message in (
        ("wrong", r"wrong.json is not a valid JSON schema: .*properties.a"),
        ("broken", r"broken.json cannot be read as JSON"),
        ("absent", r"absent.json cannot be read as JSON: .*needs a JSON schema"),
    ):
        with pytest.raises(UserError, match=message):
            metric_named(f"schema:{name}.json", tmp_path)
