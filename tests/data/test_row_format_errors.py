"""The example that each row format makes of a row, and the message for each malformed row."""

import math
import re
from typing import Any

import pytest

from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.format_detection import detect, format_for
from tunesmith.data.read import Row
from tunesmith.data.row_format import text_of
from tunesmith.data.row_formats import FORMATS, format_named, to_example
from tunesmith.data.turns import ROLES, MalformedRowError, in_words, parsed, tools_of, turns_of
from tunesmith.errors import UserError


def row(values: Any, number: int = 1) -> Row:
    return Row(values, Source("rows.jsonl", number))


def example(format: str, values: Any, columns: dict[str, str] | None = None) -> Example:
    result = to_example(row(values), format, columns)
    assert isinstance(result, Example), result
    assert result.source == Source("rows.jsonl", 1)
    return result


def reason(format: str, values: Any, columns: dict[str, str] | None = None) -> str:
    result = to_example(row(values, 3), format, columns)
    assert isinstance(result, Malformed), result
    assert result.source == Source("rows.jsonl", 3)
    return result.reason


# Labeled texts


@pytest.mark.parametrize(
    ("format", "values", "label"),
    [
        ("classification", {"text": "a", "label": " yes "}, "yes"),
        ("classification", {"sentence": "a", "Topic": 3}, "3"),
        ("classification", {"content": "a", "class": 3.0}, "3"),
        ("multi_label", {"text": "a", "labels": ["x", 2, 4.0, "x"]}, ("x", "2", "4")),
        ("multi_label", {"text": "a", "labels": ' ["x", "y"]'}, ("x", "y")),
        ("multi_label", {"text": "a", "tags": "x"}, ("x",)),
        ("multi_label", {"text": "a", "categories": []}, ()),
        ("regression", {"text": "a", "score": 2}, 2.0),
        ("regression", {"text": "a", "rating": "-1.5e1"}, -15.0),
    ],
)
def test_the_label_of_a_text_is_a_name_names_or_a_number(format: str, values: dict[str, Any], label: Any) -> None:
    result = example(format, values)
    assert (result.text, result.label, result.messages, result.spans, result.others) == ("a", label, None, None, ())


@pytest.mark.parametrize(
    ("format", "values", "message"),
    [
        ("text", {"text": " \n"}, "the text is empty"),
        ("text", {"text": 7}, "text is a number (7), not a text"),
        ("classification", {"text": "a", "label": None}, "label is missing"),
        ("classification", {"text": "", "label": "x"}, "the text is empty"),
        ("classification", {"text": "a", "label": " "}, "label is a text (' '), not a class name or number"),
        ("classification", {"text": "a", "label": 0.5}, "label is a number (0.5), not a class name or number"),
        ("multi_label", {"text": "a", "labels": ["x", None]}, "a label is missing, not a class name or number"),
        ("multi_label", {"text": "a", "labels": "[x"}, "labels is a text that is not valid JSON: '[x'"),
        ("regression", {"text": "a", "score": True}, "score is a truth value (True), not a finite number"),
        ("regression", {"text": "a", "score": "much"}, "score is a text ('much'), not a finite number"),
        ("regression", {"text": "a", "score": [1]}, "score is a list, not a finite number"),
        ("regression", {"text": "a", "score": "inf"}, "score is a text ('inf'), not a finite number"),
        ("words", {"tokens": ["a"], "tags": "O"}, "tags is a text that is not valid JSON: 'O'"),
        ("words", {"tokens": ["a"], "tags": {}}, "tokens is not a list of words, or tags is not a list"),
        ("words", {"tokens": {"a": 1}, "tags": ["O"]}, "tokens is not a list of words, or tags is not a list"),
        ("words", {"tokens": ["a", 1], "tags": ["O", "O"]}, "tokens is not a list of words, or tags is not a list"),
        ("words", {"tokens": ["a"], "tags": ["O", "O"]}, "it has 1 tokens and 2 tags"),
        ("words", {"tokens": [], "tags": []}, "it has no tokens"),
        ("words", {"tokens": ["a"], "tags": [None]}, "a tag is missing, not a class name or number"),
        ("pairs", {"anchor": "a", "positive": " "}, "the positive is empty"),
        ("pairs", {"anchor": "", "positive": "b"}, "the anchor is empty"),
        (
            "pairs",
            {"anchor": "a", "positive": "b", "negative": ["c", 1]},
            "negative is neither a text nor a list of texts",
        ),
        ("pairs", {"anchor": "a", "positive": "b", "negative": ""}, "negative is neither a text nor a list of texts"),
    ],
)
def test_a_text_without_a_valid_label_is_malformed(format: str, values: dict[str, Any], message: str) -> None:
    assert reason(format, values) == message


def test_words_are_joined_by_spaces_and_keep_their_tags() -> None:
    spans = ((0, 2, "B-PER"), (3, 7, "O"), (8, 9, "4"))
    for values in (
        {"tokens": ["Al", "goes", "."], "tags": ["B-PER", "O", 4]},
        {"words": '["Al", "goes", "."]', "ner_tags": '["B-PER", "O", 4]'},
    ):
        result = example("words", values)
        assert (result.text, result.spans, result.label) == ("Al goes .", spans, None)


@pytest.mark.parametrize(
    ("text", "entities", "spans"),
    [
        pytest.param(
            "Ann Lee, Bern!",
            [{"start": 0, "end": 7, "label": "PER"}, {"start": 9, "end": 13, "label": "LOC"}],
            [(0, 3, "B-PER"), (4, 7, "I-PER"), (7, 8, "O"), (9, 13, "B-LOC"), (13, 14, "O")],
            id="the first word of an entity, the others, outside",
        ),
        pytest.param(
            "Bern Rom",
            [[5, 8, "LOC"], [0, 4, "LOC"]],
            [(0, 4, "B-LOC"), (5, 8, "B-LOC")],
            id="spaCy tuples; two adjacent entities",
        ),
        pytest.param("日本へ", [[0, 2, "LOC"]], [(0, 1, "B-LOC"), (1, 2, "I-LOC"), (2, 3, "O")], id="without spaces"),
        pytest.param("über_1 ok", [], [(0, 6, "O"), (7, 9, "O")], id="none"),
        pytest.param("a b", '[{"start": 2, "end": 3, "label": "X"}]', [(0, 1, "O"), (2, 3, "B-X")], id="as JSON"),
        pytest.param("a b", [[0, 3, "X"]], [(0, 1, "B-X"), (2, 3, "I-X")], id="up to the end of the text"),
    ],
)
def test_entities_become_a_tag_for_each_word(text: str, entities: Any, spans: list[Any]) -> None:
    result = example("entities", {"text": text, "entities": entities})
    assert (result.text, result.spans) == (text, tuple(spans))


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ({"start": 0}, "entities is an object, not a list"),
        (["x"], "an entity is a text ('x'), not {start, end, label}"),
        ([[0, 3]], "an entity is a list, not {start, end, label}"),
        ([{"start": 0, "end": 3}], "label is missing"),
        ([{"start": 0, "end": 3, "label": " "}], "an entity's label is a text (' '), not a class name or number"),
        ([[0, 4, "X"], [3, 7, "Y"]], "two entities overlap at ' Lee'"),
        ([[1, 3, "X"]], "an entity begins or ends inside the word 'Ann'"),
        ([[3, 3, "X"]], "an entity's start and end (3, 3) are not a span of the text"),
        ([[-1, 3, "X"]], "an entity's start and end (-1, 3) are not a span of the text"),
        ([[0, 9, "X"]], "an entity's start and end (0, 9) are not a span of the text"),
        ([["0", 3, "X"]], "an entity's start and end (0, 3) are not a span of the text"),
        ([[0, "3", "X"]], "an entity's start and end (0, 3) are not a span of the text"),
        ([[3, 4, "X"]], "the entity from 3 to 4 holds no word"),
    ],
)
def test_entities_that_are_not_a_span_of_words_are_malformed(entities: Any, message: str) -> None:
    assert reason("entities", {"text": "Ann Lee!", "entities": entities}) == message


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({"anchor": "a", "positive": "b"}, ("b",)),
        ({"query": "a", "passage": "b", "negative": None}, ("b",)),
        ({"Question": "a", "Answer": "b", "negative": "c"}, ("b", "c")),
        ({"title": "a", "text": "b", "negative": ["c", "d"]}, ("b", "c", "d")),
        ({"query": "a", "document": "b", "negative": ' ["c"]'}, ("b", "c")),
    ],
)
def test_pairs_are_an_anchor_its_positive_and_negatives(values: dict[str, Any], others: tuple[str, ...]) -> None:
    result = example("pairs", values)
    assert (result.text, result.others) == ("a", others)


@pytest.mark.parametrize(
    ("formats", "present", "columns", "format"),
    [
        (("words", "entities"), ["text", "spans"], {}, "entities"),
        (("words", "entities"), ["Words", "tags"], {}, "words"),
        (("words", "entities"), ["other"], {}, "words"),
        (("words", "entities"), ["a", "b"], {"text": "a", "entities": "b"}, "entities"),
        (("words", "entities"), ["tokens", "tags", "a"], {"entities": "a"}, "entities"),
        (("words", "entities"), ["text", "spans"], {"nothing": "a"}, "entities"),
    ],
)
def test_format_for_prefers_named_fields_then_present_columns(
    formats: tuple[str, ...], present: list[str], columns: dict[str, str], format: str
) -> None:
    assert format_for([row(dict.fromkeys(present, "x"))], formats, columns) == format


# Chats


CHAT = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


def test_a_system_column_comes_first_and_a_second_system_turn_is_refused() -> None:
    system = {"role": "system", "content": "Be kind"}
    for values in (
        {"messages": list(CHAT), "system_prompt": "Be kind"},
        {"messages": list(CHAT), "system": "Be kind", "system_prompt": "other"},
        {"messages": [system, *CHAT], "system": ""},
    ):
        assert example("messages", values).messages == (system, *CHAT)
    for role in ("system", "developer"):
        values = {"messages": [{"role": role, "content": "x"}, *CHAT], "system": "Be kind"}
        assert reason("messages", values) == "it has both a system column and a system turn"
    assert reason("messages", {"messages": list(CHAT), "system": 3}) == "system is a number (3), not a text"


@pytest.mark.parametrize(
    ("format", "values", "message"),
    [
        (
            "prompt_completion",
            {"prompt": "a", "completion": [CHAT[1]]},
            "prompt is a text ('a') and completion is a list; both must be texts, or both lists of turns",
        ),
        (
            "prompt_completion",
            {"prompt": [CHAT[0]], "completion": "a"},
            "prompt is a list and completion is a text ('a'); both must be texts, or both lists of turns",
        ),
        (
            "prompt_completion",
            {"prompt": [CHAT[1]], "completion": [CHAT[0]]},
            "completion has no assistant turn, so there is no answer to learn from",
        ),
        ("prompt_completion", {"prompt": "a", "completion": None}, "completion is missing"),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [["a"]]},
            "history is not a list of [question, answer] pairs",
        ),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [["a", 1]]},
            "history is not a list of [question, answer] pairs",
        ),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": "x"},
            "history is a text that is not valid JSON: 'x'",
        ),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": '{"a": 1}'},
            "history is not a list of [question, answer] pairs",
        ),
        ("alpaca", {"instruction": "a", "output": " "}, "the answer is empty"),
        ("alpaca", {"instruction": "a", "output": " ", "history": [["b", "c"]]}, "turn 4 (assistant) is empty"),
        ("question_answer", "some text", "plain text, but the other rows have columns (question, answer)"),
        ("question_answer", {}, "no column 'question'; it has none"),
        ("messages", {"messages": 7}, "messages is a number (7), not a list of turns"),
        ("messages", {"messages": ["x"]}, "turn 1 of messages is a text ('x'), not an object with role and content"),
        ("messages", {"messages": [{}]}, "turn 1 of messages has no role; it has nothing"),
        (
            "messages",
            {"messages": [{"role": 1, "content": "x"}]},
            f"turn 1 of messages has the unknown role 1; known: {', '.join(ROLES)}",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "user", "content": None}]},
            "turn 2 of messages has no content; it has role, content",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": 1}]},
            "the content of turn 1 of messages is a number (1), not a text",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "the content of turn 1 of messages has images (a part of type image), which no objective can use yet. "
            "Remove the part, or such rows",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [7]}]},
            "the content of turn 1 of messages has a part that is not text (a number (7))",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "the content of turn 1 of messages has a part that is not text (text)",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": "x", "train": "no"}]},
            "the train of turn 2 of messages is a text ('no'), not 0 or 1",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": "x", "loss_weight": 0.5}]},
            "the loss_weight of turn 2 of messages is a number (0.5), not 0 or 1",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": "x", "reasoning_content": 3}]},
            "the reasoning_content of turn 2 of messages is a number (3), not a text",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": "<think>a</think>x", "thinking": "b"}]},
            "turn 2 of messages has reasoning in thinking and in <think> in its content, which differ. Keep one of "
            "them",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": "x", "reasoning": "b"}]},
            "turn 1 of messages (user) has reasoning, but only an answer has reasoning",
        ),
        (
            "messages",
            {"messages": [{"role": "gpt", "content": ["x", {"type": "reasoning", "value": "b"}]}]},
            "the content of turn 1 of messages has reasoning after its text. Put the reasoning first",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "tool_calls": 3}]},
            "the tool call in turn 2 of messages is a number (3), not an object with name and arguments",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [3]}]},
            "the tool call in turn 2 of messages is not an object with name and arguments",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]},
            "the tool call in turn 2 of messages is not an object with name and arguments",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]},
            "the tool call's arguments in turn 2 of messages are a list, not an object",
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "the tool call's arguments in turn 2 of messages is a text that is not valid JSON: '{'",
        ),
        ("messages", {"messages": list(CHAT), "tools": 3}, "tools is a number (3), not a list of tool descriptions"),
        ("messages", {"messages": list(CHAT), "tools": ["x"]}, "tools is a list, not a list of tool descriptions"),
        ("messages", {"messages": list(CHAT), "tools": "["}, "tools is a text that is not valid JSON: '['"),
    ],
)
def test_a_malformed_chat_has_a_reason_that_names_the_turn(format: str, values: Any, message: str) -> None:
    assert reason(format, values) == message


def test_histories_come_in_order_before_the_question() -> None:
    history = [["a", "b"], ["c", "d"]]
    for given in (history, '[["a", "b"], ["c", "d"]]'):
        result = example("alpaca", {"instruction": "e", "output": "f", "history": given}).messages
        assert result is not None
        assert [(turn["role"], turn["content"]) for turn in result] == [
            ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f"),
        ]  # fmt: skip


def test_turns_get_their_usual_names_and_keep_other_keys() -> None:
    turns = turns_of(
        [
            {"role": "Human", "content": "a", "name": "Al", "none": None},
            {"from": "bot", "value": [{"type": "text", "text": "b"}, "c", {"text": "d"}], "reasoning_content": "r"},
            {"role": "assistant", "content": None, "reasoning_content": "r"},
            {"role": "assistant", "content": "x", "tool_calls": []},
            {"role": "user", "from": "gpt", "content": "e", "value": "f"},
        ],
        "messages",
    )
    assert turns == [
        {"role": "user", "content": "a", "name": "Al"},
        {"role": "assistant", "content": "bcd", "reasoning_content": "r"},
        {"role": "assistant", "content": "", "reasoning_content": "r"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "e", "from": "gpt", "value": "f"},
    ]


@pytest.mark.parametrize("name", ["weight", "loss_weight", "train", "training", "learn"])
def test_a_turn_without_loss_is_marked_and_other_marks_are_removed(name: str) -> None:
    turns = [{"role": "assistant", "content": "x", name: value} for value in (0, False, 1, True, 1.0)]
    result = turns_of(turns, "messages")
    plain = {"role": "assistant", "content": "x"}
    assert result == [{**plain, "learn": False}] * 2 + [plain] * 3
    both = {"role": "assistant", "content": "x", "weight": 1, "train": 0}
    assert turns_of([both], "messages") == [{**plain, "learn": False}]
    assert turns_of([{**both, "weight": 0, "train": 1}], "messages") == [{**plain, "learn": False}]


def test_the_second_format_of_llama_factory_is_read() -> None:
    """Parts with a `value`, and a `loss_weight` for each message, as in its v1 data sets."""
    call = '{"name": "f", "arguments": {"a": 1}}'
    rows = [
        {"role": "system", "content": [{"type": "text", "value": "Be kind"}], "loss_weight": 0.0},
        {"role": "user", "content": [{"type": "text", "value": "Hi, "}, {"type": "text", "value": "you"}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": call}], "loss_weight": 0.0},
        {"role": "tool", "content": [{"type": "text", "value": "3"}], "loss_weight": 0.0},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "value": "Greet"}, {"type": "text", "value": "Hello", "text": None}],
            "loss_weight": 1.0,
        },
    ]
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert example("messages", {"messages": rows}).messages == (
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi, you"},
        {"role": "assistant", "content": "", "tool_calls": calls, "learn": False},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "Greet"},
    )


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Hello", "reasoning_content": "Greet"},
        {"content": "Hello", "reasoning": "Greet", "reasoning_content": "Greet"},
        {"content": "Hello", "thinking": "Greet", "reasoning": ""},
        {"content": [{"type": "reasoning", "text": "Greet"}, {"type": "text", "text": "Hello"}]},
        {"content": [{"type": "thinking", "thinking": "Greet"}, "Hello"]},
        {"content": "<think>\nGreet\n</think>\n\nHello", "reasoning_content": "Greet"},
    ],
)
def test_reasoning_from_any_key_or_part_becomes_reasoning_content(turn: dict[str, Any]) -> None:
    (result,) = turns_of([{"role": "assistant", **turn}], "messages")
    assert result == {"role": "assistant", "content": "Hello", "reasoning_content": "Greet"}


def test_think_in_the_content_alone_is_left_to_the_chat_template() -> None:
    turn = {"role": "assistant", "content": "<think>\nGreet\n</think>\n\nHello"}
    assert turns_of([turn], "messages") == [turn]


# Images, audio and video

IMAGE = {"bytes": b"\x89PNG", "path": None}


@pytest.mark.parametrize(
    ("column", "value", "noun"),
    [
        ("images", ["cat.png"], "images"),
        ("image", "cat.png", "images"),
        ("Image", IMAGE, "images"),
        ("image", b"\x89PNG", "images"),
        ("image", object(), "images"),
        ("image_path", "cat.png", "images"),
        ("videos", ["cat.mp4"], "videos"),
        ("video", '["cat.mp4"]', "videos"),
        ("audios", ["cat.wav"], "audio"),
        ("audio", {"array": [0.1], "path": "cat.wav", "sampling_rate": 16_000}, "audio"),
        ("audio", {"array": [0.1], "path": None, "sampling_rate": 16_000}, "audio"),
    ],
)
def test_a_row_with_media_is_malformed_and_names_its_column(column: str, value: Any, noun: str) -> None:
    message = f"column {column} holds {noun}, which no objective can use yet. Remove the column, or such rows"
    for format, values in (
        ("messages", {"messages": list(CHAT)}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "x"}]}),
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("text", {"text": "a"}),
        ("classification", {"text": "a", "label": "b"}),
    ):
        assert reason(format, {**values, column: value}) == message


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("images", None), ("images", []), ("images", ""), ("images", "[]"), ("images", [None]), ("images", 2),
        ("image", {"bytes": None, "path": None}), ("video", False), ("video", "False"), ("audio", math.nan),
        ("image", "0"), ("imagery", "vivid"), ("image_caption", "A cat."), ("image_count", "many"),
    ],
)  # fmt: skip
def test_a_media_column_without_media_is_ignored(column: str, value: Any) -> None:
    assert example("messages", {"messages": list(CHAT), column: value}).messages == CHAT


def test_a_media_column_that_the_recipe_names_is_read_as_text() -> None:
    columns = {"question": "image", "answer": "caption"}
    result = example("question_answer", {"image": "A drawn cat", "caption": "Cute"}, columns)
    assert result.messages is not None
    assert result.messages[0]["content"] == "A drawn cat"


@pytest.mark.parametrize(
    ("part", "noun", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/cat.png"}}, "images", "image_url"),
        ({"type": "image_url", "value": "cat.png"}, "images", "image_url"),
        ({"type": "image"}, "images", "image"),
        ({"type": "input_image", "image_url": "x"}, "images", "input_image"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "audio", "input_audio"),
        ({"type": "audio_url", "audio_url": "x"}, "audio", "audio_url"),
        ({"type": "video", "video": "x"}, "videos", "video"),
        ({"type": None, "text": None, "image": "x"}, "images", "image"),
    ],
)
def test_a_part_with_media_is_malformed_and_names_its_turn(part: dict[str, Any], noun: str, kind: str) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}
    assert reason("messages", {"messages": [turn, CHAT[1]]}) == (
        f"the content of turn 1 of messages has {noun} (a part of type {kind}), which no objective can use yet. Remove "
        "the part, or such rows"
    )


def test_a_turn_with_media_beside_its_content_is_malformed() -> None:
    turn = {"role": "user", "content": "Hi", "images": ["cat.png"]}
    assert reason("messages", {"messages": [turn, CHAT[1]]}) == (
        "turn 1 of messages has images in images, which no objective can use yet. Remove the key, or such rows"
    )
    assert example("messages", {"messages": [{**turn, "images": []}, CHAT[1]]}).messages is not None


def conversation(question: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "x"}]}


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "<video> \nWhat?", "<audio>\n?"])
def test_a_placeholder_of_llava_without_its_column_is_malformed(question: str) -> None:
    assert re.match(
        "turn 1 of conversations has the placeholder <(image|video|audio)> on a line of its own, for "
        "(images|videos|audio), which no objective can use yet. Remove the placeholder, or such rows",
        reason("sharegpt", conversation(question)),
    )


@pytest.mark.parametrize(
    "question",
    [
        "What does <image> mean in LLaVA?",
        "<video> tags in HTML: how do I close one?",
        "Fix this:\n<video>\n<source src='a.mp4'>\n</video>",
        "<video>\n<source src='a.mp4'>\n</video>",
        "Write a line with\n<image>\nin the middle.",
    ],
)
def test_a_text_that_talks_about_a_placeholder_is_read(question: str) -> None:
    result = example("sharegpt", conversation(question))
    assert result.messages is not None
    assert result.messages[0]["content"] == question


def test_a_placeholder_in_other_formats_is_text() -> None:
    assert example("question_answer", {"question": "<image>\nWhat is this tag?", "answer": "LLaVA's."})


def test_tool_calls_of_any_layout_get_the_same_layout() -> None:
    expected = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    bare, as_json = {"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": '{"a": 1}'}
    for calls in (
        bare,
        [bare],
        as_json,
        {"function": bare},
        '[{"name": "f", "arguments": {"a": 1}}]',
        {**bare, "id": 9},
    ):
        (turn,) = turns_of([{"role": "assistant", "content": "", "tool_calls": calls}], "messages")
        assert turn["tool_calls"] == expected
    (turn,) = turns_of([{"role": "assistant", "tool_calls": [{"id": "7", "function": {"name": "f"}}]}], "messages")
    assert turn["tool_calls"] == [{"type": "function", "id": "7", "function": {"name": "f", "arguments": {}}}]
    (turn,) = turns_of([{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}], "messages")
    assert turn == {"role": "assistant", "content": "", "tool_calls": expected}


def test_a_turn_with_only_calls_or_reasoning_is_not_empty() -> None:
    for more in ({"tool_calls": [{"name": "f"}]}, {"reasoning_content": "r"}):
        turn = {"role": "assistant", "content": " ", **more}
        result = example("messages", {"messages": [CHAT[0], turn]})
        assert result.messages is not None
        assert result.messages[1]["content"] == " "
    empty = [CHAT[0], {"role": "assistant", "content": " "}, CHAT[1]]
    assert reason("messages", {"messages": empty}) == "turn 2 (assistant) is empty"


def test_bare_tools_are_wrapped() -> None:
    bare, wrapped = {"name": "f"}, {"type": "function", "function": {"name": "f"}}
    assert tools_of([bare, wrapped]) == (wrapped, wrapped)
    assert tools_of(bare) == tools_of('{"name": "f"}') == (wrapped,)
    assert tools_of(None) is tools_of("") is tools_of("[]") is tools_of([]) is None
    assert example("messages", {"messages": list(CHAT), "tools": [bare]}).tools == (wrapped,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "missing"),
        (True, "a truth value (True)"),
        (4.5, "a number (4.5)"),
        ("x" * 40, f"a text ({'x' * 40!r})"),
        ("x" * 41, f"a text ({'x' * 39 + '…'!r})"),
        ((1,), "a list"),
        ({}, "an object"),
        ({1}, "a set"),
    ],
)
def test_in_words_describes_the_type_of_a_value(value: Any, words: str) -> None:
    assert in_words(value) == words


def test_parsed_reads_json_texts_and_returns_other_values() -> None:
    assert parsed("[1]", "x") == [1]
    assert parsed([1], "x") == [1]
    with pytest.raises(MalformedRowError, match=r"x is a text that is not valid JSON: '\[1'"):
        parsed("[1", "x")
    with pytest.raises(MalformedRowError, match="x is a text that is not valid JSON"):
        parsed("[" * 100_000, "x")


def test_a_missing_text_takes_its_default_and_a_wrong_type_does_not() -> None:
    assert text_of({"a": None}, "a", "d") == text_of({}, "a", "d") == "d"
    assert text_of({"a": ""}, "a", "d") == ""
    with pytest.raises(MalformedRowError, match=r"^a is missing$"):
        text_of({}, "a")
    with pytest.raises(MalformedRowError, match=r"^a is a list, not a text$"):
        text_of({"a": []}, "a", "d")


# Detecting the format


def refusal(*rows: Any, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        detect([row(values, number) for number, values in enumerate(rows, 1)], columns)
    return str(error.value)


@pytest.mark.parametrize(
    ("format", "names"),
    [(name, names) for name, format in FORMATS.items() if format.detected for names in format.columns],
)
def test_every_usual_set_of_columns_is_detected_in_any_case(format: str, names: tuple[str, ...]) -> None:
    values = {name.title(): "x" for name in names}
    if FORMATS[format].objective is None:
        assert detect([row(values)]) == format
    else:
        assert f"To train on them, set objective: {{kind: {FORMATS[format].objective}}}" in refusal(values)


def test_columns_without_values_are_ignored_and_the_first_match_is_used() -> None:
    assert detect([row({"messages": None, "question": "a", "answer": "b"})]) == "question_answer"
    assert detect([row({"prompt": "a", "completion": "b", "question": "c", "answer": "d"})]) == "prompt_completion"
    assert detect([row({"foo": 1}), row({"question": "a", "answer": "b"}, 2)]) == "question_answer"
    assert detect([row("plain text")]) == "text"
    assert detect([row({"question": "a", "answer": "b"})], {"system": "question"}) == "question_answer"


def test_a_format_that_cannot_be_detected_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match="None of the first rows could be read, so their format cannot be detected"):
        detect([])
    assert refusal({"question": "a", "answer": "b"}, {"messages": list(CHAT)}) == (
        "The rows have several formats: questions and answers (rows.jsonl row 1), chat messages (rows.jsonl row 2). "
        "Train on files of one format, or set data.format to one of question_answer, messages; rows in another format "
        "are then malformed."
    )
    assert refusal({"a": 1}, {"b": 2, "a": 2}).startswith("rows.jsonl: no known format has the columns a, b. Name the ")
    assert "has the columns (none)" in refusal({})
    assert refusal({"from": "gpt", "value": "x"}).startswith("rows.jsonl row 1 is a single turn (from, value).")


ANSWERS = ("messages", "conversations", "completion", "output", "answer", "response")


@pytest.mark.parametrize(
    ("values", "objective"),
    [
        ({"Chosen": "a", "rejected": "b", "prompt": "c"}, "dpo"),
        ({"question": "c", "completions": ["a", "b"]}, "dpo"),
        ({"kto_tag": True, "messages": list(CHAT)}, "kto"),
        *(({"label": True, name: "x"}, "kto") for name in ANSWERS),
    ],
)
def test_human_feedback_is_refused_with_the_objective_to_set(values: dict[str, Any], objective: str) -> None:
    assert refusal(values).endswith(f"To train on them, set objective: {{kind: {objective}}}.")


@pytest.mark.parametrize(
    "values",
    [
        {"question": "a", "answer": "b", "label": "x"},
        {"question": "a", "answer": "b", "chosen": "x"},
        {"question": "a", "answer": "b", "rejected": "x"},
    ],
)
def test_answers_beside_one_preference_column_are_not_preference_data(values: dict[str, Any]) -> None:
    assert detect([row(values)]) == "question_answer"


def test_labeled_texts_are_refused_with_the_objective_to_set() -> None:
    assert refusal({"Sentence": "a", "Intent": "b"}) == (
        "rows.jsonl row 1: these are texts with classes (columns: Sentence, Intent). To train on them, "
        "set objective: {kind: classification}; to generate the class as an answer, set data.columns: {question: "
        "Sentence, answer: Intent}; to train on the texts only, set data.format: text."
    )
    assert refusal({"tokens": ["a"], "tags": ["b"]}) == (
        "rows.jsonl row 1: these are words with tags (columns: tokens, tags). To train on them, set objective: {kind: "
        "token_classification}."
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"question": "frag", "answer": "b"},
            "data.columns.question: the rows have no column 'frag' (they have frage, b). Did you mean frage?",
        ),
        (
            {"question": "zzz", "answer": "b"},
            "data.columns.question: the rows have no column 'zzz' (they have frage, b).",
        ),
        (
            {"question": "frage", "answr": "b"},
            "data.columns.answr: the format question_answer has no such field; it has question, answer, context, "
            "system. Did you mean answer?",
        ),
        (
            {"question": "frage", "zzz": "b"},
            "data.columns.zzz: the format question_answer has no such field; it has question, answer, context, system.",
        ),
    ],
)
def test_unknown_columns_and_fields_in_data_columns_are_named(columns: dict[str, str], message: str) -> None:
    assert refusal({"frage": "a", "b": "x"}, columns=columns) == message


def test_a_row_without_a_named_column_is_malformed() -> None:
    columns = {"question": "frage"}
    assert reason("question_answer", {"answer": "x", "b": 1}, columns) == "no column 'frage'; it has answer, b"
    assert reason("question_answer", {}, columns) == "no column 'frage'; it has none"
    result = example("question_answer", {"frage": "a", "answer": "b", "Context": "c", "SYSTEM": "d"}, columns)
    assert result.messages is not None
    assert [turn["content"] for turn in result.messages] == ["d", "c\n\na", "b"]
    with pytest.raises(UserError, match=r"data\.columns\.foo: the format question_answer has no such field"):
        to_example(row({"a": 1}), "question_answer", {"foo": "a"})


def test_ambiguous_columns_must_be_named() -> None:
    values = {"question": "a", "answer": "b", "response": "c"}
    with pytest.raises(UserError) as error:
        to_example(row(values), "question_answer")
    assert str(error.value) == (
        "Several columns could be question and answer. Name one in data.columns: {question: question, answer: answer "
        "or question: question, answer: response}."
    )
    with pytest.raises(UserError, match=r"Several columns could be answer\. Name one"):
        to_example(row(values), "question_answer", {"question": "question"})
    result = example("question_answer", values, {"question": "question", "answer": "response"})
    assert result.messages is not None
    assert [turn["content"] for turn in result.messages] == ["a", "c"]


def test_an_unknown_format_gets_the_nearest_name_or_all_names() -> None:
    with pytest.raises(UserError, match=r"^data.format: alpacca is not known. Did you mean alpaca\?$"):
        format_named("alpacca")
    with pytest.raises(UserError) as error:
        format_named("zzz")
    assert str(error.value) == f"data.format: zzz is not known. Known: {', '.join(FORMATS)}."
