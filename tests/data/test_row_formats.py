"""The row formats: detected from the columns, each turned into the same kind of example."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config.registry import OBJECTIVES
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.format_detection import detect
from tunesmith.data.read import Row
from tunesmith.data.row_formats import FORMATS, _columns_of_fields, to_example
from tunesmith.data.turns import ROLES, MalformedRowError, turns_of
from tunesmith.errors import UserError

CHAT = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


def row(values: Any, number: int = 1) -> Row:
    return Row(values, Source("rows.jsonl", number))


def messages(values: Any, format: str | None = None, columns: dict[str, str] | None = None) -> Any:
    """The chat of the row, or the reason why it has none."""
    example = to_example(row(values), format or detect([row(values)], columns), columns)
    return example.messages if isinstance(example, Example) else example.reason


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("messages", {"messages": list(CHAT)}),
        ("messages", {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'}),
        ("messages", {"Messages": [{"role": "USER", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1]]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}),
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}),
        ("prompt_completion", {"prompt": [CHAT[0]], "completion": [CHAT[1]]}),
        ("question_answer", {"question": "Hi", "answer": "Hello"}),
        ("question_answer", {"Problem": "Hi", "Solution": "Hello"}),
    ],
)
def test_every_format_is_detected_from_its_columns_and_gives_the_chat(format: str, values: dict[str, Any]) -> None:
    assert detect([row(values)]) == format
    assert messages(values) == CHAT


def test_systems_inputs_histories_and_contexts_are_placed_in_the_chat() -> None:
    system = {"role": "system", "content": "Be kind"}
    assert messages({"messages": list(CHAT), "system": "Be kind"}) == (system, *CHAT)
    assert messages({"instruction": "Add", "input": "1, 2", "output": "3"})[0]["content"] == "Add\n1, 2"
    earlier = messages({"instruction": "Hi", "output": "Hello", "history": [["A", "B"]]})
    assert [turn["content"] for turn in earlier] == ["A", "B", "Hi", "Hello"]
    assert messages({"question": "Q", "answer": "A", "context": "C"})[0]["content"] == "C\n\nQ"


def test_tool_calls_get_the_format_that_templates_take() -> None:
    called = messages(
        {
            "conversations": [
                {"from": "human", "value": "Add 1 and 2"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "Three"},
            ]
        }
    )
    assert called[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert called[2] == {"role": "tool", "content": "3"}


def test_data_columns_name_the_columns_to_read() -> None:
    values = {"kunde": "Hi", "agent": "Hello", "text": "other"}
    columns = {"question": "kunde", "answer": "agent"}
    assert detect([row(values)], columns) == "question_answer"
    assert messages(values, columns=columns) == CHAT
    with pytest.raises(UserError, match=r"no column 'kunden'.*Did you mean kunde\?"):
        detect([row(values)], {"question": "kunden", "answer": "agent"})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"messages": []}, "empty list"),
        ({"messages": [CHAT[0]]}, "no assistant turn"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": "  "}]}, "the answer is empty"),
        ({"messages": [CHAT[0], {"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"messages": [{"content": "x"}]}, "has no role"),
        ({"messages": "not json"}, "a text that is not valid JSON"),
        ({"question": "Q", "answer": 7}, "answer is a number"),
        ({"question": "Q"}, "no column 'answer'"),
    ],
)
def test_a_malformed_row_has_a_reason(values: dict[str, Any], reason: str) -> None:
    format = "messages" if "messages" in values else "question_answer"
    example = to_example(row(values, 7), format)
    assert isinstance(example, Malformed)
    assert reason in example.reason
    assert str(example.source) == "rows.jsonl row 7"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}], "pairs of a chosen and a rejected answer"),
        ([{"text": "a", "label": "good"}], "texts with classes"),
        ([{"foo": 1, "bar": 2}], r"no known format has the columns foo, bar.*data.columns"),
        ([{"role": "user", "content": "a"}], "a single turn"),
        ([{"messages": list(CHAT)}, {"prompt": "a", "completion": "b"}], "have several formats"),
    ],
)
def test_data_of_another_kind_is_refused_with_its_name(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect([row(values, number) for number, values in enumerate(rows, 1)])


def test_a_misspelled_format_gets_the_nearest_name() -> None:
    """Guards against https://github.com/hiyouga/LlamaFactory/issues/3665."""
    with pytest.raises(UserError, match=r"data.format: sharegtp is not known. Did you mean sharegpt\?"):
        to_example(row({}), "sharegtp")


def test_formats_with_targets_name_the_objective_that_takes_them() -> None:
    assert {name: format.objective for name, format in FORMATS.items() if format.objective is not None} == {
        "classification": "classification",
        "multi_label": "multi_label",
        "regression": "regression",
        "words": "token_classification",
        "entities": "token_classification",
        "pairs": "embedding",
        "preference": "dpo",
        "ranking": "dpo",
        "rating": "kto",
        "steps": "process_reward",
        "grades": "graded_reward",
    }
    for format in FORMATS.values():
        assert format.objective is None or format.objective in OBJECTIVES


class _Unusual(dict[str, Any]):
    """A turn that is no plain dict, which is looked at closely."""


@given(
    role=st.sampled_from([*ROLES, "User", "x", "", 3]),
    content=st.sampled_from(["", " ", "hi", "<think>x</think> y", "{}", 1, None, ["a"]]),
    more=st.dictionaries(st.sampled_from(["weight", "name", "image", "reasoning_content", "value"]), st.just("1")),
)
def test_a_plain_turn_is_read_as_any_other(role: Any, content: Any, more: dict[str, Any]) -> None:
    turn = {"role": role, "content": content, **more}

    def read(each: dict[str, Any]) -> Any:
        try:
            return turns_of([each], "messages")
        except MalformedRowError as error:
            return str(error)

    assert read(turn) == read(_Unusual(turn))


def test_rows_with_the_same_columns_are_read_by_the_values_that_they_have() -> None:
    both = {"question": "q", "answer": "a", "Response": None}
    assert messages(both, "question_answer")[1]["content"] == "a"
    assert messages({**both, "answer": None, "Response": "b"}, "question_answer")[1]["content"] == "b"


def test_columns_of_rows_with_very_many_are_not_kept() -> None:
    wide = {f"column {number}": "" for number in range(1000)}
    assert messages({**wide, "question": "q", "answer": "a"}, "question_answer")[1]["content"] == "a"
    _columns_of_fields.cache_clear()
    messages({**wide, "question": "q", "answer": "a"}, "question_answer")
    assert _columns_of_fields.cache_info().currsize == 0
