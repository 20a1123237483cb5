"""The exact tokens and loss masks of labeled texts, compared texts, encoder–decoder pairs and documents; the check of
them; and how they are shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bytewise import byte_tokenizer
from stock_templates import stock, tokenizer_with
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tunesmith.config.recipe import Recipe
from tunesmith.data.check import find_problem
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering, source_text
from tunesmith.data.show import Piece, Shown, show
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer

HERE = Source("rows.jsonl", 1)


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with [CLS] before a text and [SEP] after it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    first, last = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    return tokenizer


TOKENIZER = encoder_tokenizer()
RENDERER = Renderer(TOKENIZER)
CLS, SEP = TOKENIZER.convert_tokens_to_ids(["[CLS]", "[SEP]"])


def read(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def marked(rendering: Rendering) -> tuple[list[int], list[int]]:
    """Its ids and its loss positions."""
    ((ids, loss_mask),) = RENDERER.tokenize_many([rendering])
    assert (ids.dtype, loss_mask.dtype) == (np.int32, np.bool_)
    return ids.tolist(), np.flatnonzero(loss_mask).tolist()


# Tokens and loss masks


def test_a_text_with_a_class_has_loss_on_its_last_token() -> None:
    ids = [CLS, *read("a <|im_end|>"), SEP]
    assert marked(Rendering("a <|im_end|>", (), targets=(1.0,))) == (ids, [len(ids) - 1])
    assert len(read("<|im_end|>")) == 10, "the text of a special token is read as characters"
    assert marked(Rendering("", (), targets=(1.0,))) == ([CLS, SEP], [1])


def test_words_with_tags_have_loss_on_their_first_tokens() -> None:
    text = "Ann ging über <|pad|>"
    spans = ((0, 3), (4, 8), (9, 13), (14, 21))
    ids = [CLS, *read(text), SEP]
    # "ü" is two bytes, which shifts the positions after it by one
    assert marked(Rendering(text, spans, targets=(1.0, 0.0, 0.0, 2.0))) == (ids, [1, 5, 10, 16])


def test_compared_texts_are_concatenated_with_loss_on_their_last_tokens() -> None:
    ids = [CLS, *read("ab"), SEP, CLS, *read("<|pad|>"), SEP, CLS, *read("c"), SEP]
    assert marked(Rendering("", (), targets=(), parts=("ab", "<|pad|>", "c"))) == (ids, [3, 12, 15])


def test_an_encoder_decoder_has_loss_on_the_answer_only() -> None:
    ids = [CLS, *read("ask <|pad|>"), SEP, CLS, *read("answer"), SEP]
    actual, positions = marked(Rendering("answer", ((0, 6),), source="ask <|pad|>"))
    assert actual == ids
    assert positions == list(range(13, 21))


def test_renderings_of_several_kinds_are_returned_in_order() -> None:
    renderings = [
        Rendering("a", (), targets=(1.0,)),
        Rendering("doc", ((0, 3),), document=True),
        Rendering("", (), targets=(), parts=("b", "c")),
        Rendering("b", (), targets=(2.0,)),
        Rendering("x<|im_end|>", ((1, 11),)),
        Rendering("ab", ((0, 1), (1, 2)), targets=(1.0, 1.0)),
    ]
    alone = [marked(rendering) for rendering in renderings]
    together = [
        (ids.tolist(), np.flatnonzero(loss_mask).tolist()) for ids, loss_mask in RENDERER.tokenize_many(renderings)
    ]
    assert together == alone
    end = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    assert alone[1] == ([*read("doc"), end], [0, 1, 2, 3])
    assert alone[4] == ([*read("x"), TOKENIZER.eos_token_id], [1])


@pytest.mark.parametrize(
    ("template", "closing"),
    [("[CLS] $A [SEP]", 1), ("[CLS] $A", 0), ("$A [SEP] [SEP]", 2), ("$A", 0), ("[CLS] [SEP] $A [SEP]", 1)],
)
def test_the_closing_tokens_of_the_tokenizer_are_counted(template: str, closing: int) -> None:
    tokenizer = encoder_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    assert Renderer(tokenizer).closing_tokens == closing


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_document_has_the_bos_of_the_tokenizer_and_an_end_of_document(adds_bos: bool) -> None:
    tokenizer = tokenizer_with("{{ messages }}", "llama3")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
        )
    renderer = Renderer(tokenizer)
    first = [bos] if adds_bos else []
    assert renderer.bos_of_document == first
    (rendering,) = renderer.render(Example(HERE, text="ab <|eot_id|>"))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    inner = tokenizer("ab <|eot_id|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids.tolist() == [*first, *inner, eos]
    assert loss_mask.tolist() == [False] * len(first) + [True] * (len(inner) + 1)
    assert find_problem(renderer, rendering, (ids, loss_mask)) is None
    reason = find_problem(renderer, rendering, (np.insert(ids, 0, bos), np.insert(loss_mask, 0, False)))
    count = int(adds_bos)
    assert reason == f"it has {1 + count} beginning-of-sequence tokens, but the template writes {count}"


def test_the_end_of_document_is_the_model_s_own_token_if_it_has_one() -> None:
    for name, end in (
        ("<|endoftext|>", "<|endoftext|>"),
        ("<|end_of_text|>", "<|end_of_text|>"),
        ("<x>", "<|im_end|>"),
    ):
        tokenizer = tokenizer_with("{{ messages }}")
        tokenizer.add_special_tokens({"additional_special_tokens": [name]})
        assert Renderer(tokenizer).end_of_document == tokenizer.convert_tokens_to_ids(end)


def test_a_tokenizer_written_in_python_is_refused() -> None:
    renderer = Renderer(byte_tokenizer())

    class Slow:
        """A slow transformers tokenizer."""

    renderer.tokenizer = Slow()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^Slow is written in Python and does not map tokens to characters"):
        renderer.tokenize_many([Rendering("a", ((0, 1),))])


def test_an_encoder_reads_the_system_and_user_messages() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "developer", "user")]
    assert source_text(turns) == "system\n\ndeveloper\n\nuser"
    for role in ("assistant", "tool"):
        with pytest.raises(UnusableError, match="it has several turns, but an encoder–decoder reads one text"):
            source_text([*turns, {"role": role, "content": "x"}])


def test_white_space_and_control_tokens_are_sets_of_ids() -> None:
    assert {*read(" "), *read("\n")} == RENDERER.white_space_tokens
    names = ["<|im_end|>", "<|pad|>", "<|im_start|>", "<|endoftext|>", "[CLS]", "[SEP]"]
    assert set(TOKENIZER.convert_tokens_to_ids(names)) == RENDERER.control_tokens


# Refused chats, and which turns have loss


def turns(*texts: str, **more: Any) -> tuple[dict[str, Any], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[index % 2], "content": text, **more} for index, text in enumerate(texts))


def test_a_control_token_in_reasoning_is_refused() -> None:
    renderer = Renderer(stock("qwen3"))
    question, answer = turns("Hi", "Yes")
    with pytest.raises(UnusableError, match=r"^turn 2 \(assistant\) holds <\|im_end\|>, which the tokenizer reads"):
        renderer.render(Example(HERE, messages=(question, {**answer, "reasoning_content": "so <|im_end|>"})))


CHAT = turns("A?", "One.", "B?", "Two.", "C?", "Three.")


@pytest.mark.parametrize(
    ("without_loss", "learn", "answers", "has_last"),
    [
        ((), "assistant", ["One.", "Two.", "Three."], True),
        ((), "last", ["Three."], True),
        ((5,), "assistant", ["One.", "Two."], False),
        ((1, 5), "assistant", ["Two."], False),
        ((1,), "last", ["Three."], True),
        ((0,), "assistant", ["One.", "Two.", "Three."], True),
        ((1, 5), "all", None, True),
    ],
)
def test_turns_without_loss_are_read_and_turns_after_the_last_loss_are_cut(
    without_loss: tuple[int, ...], learn: Any, answers: list[str] | None, has_last: bool
) -> None:
    renderer = Renderer(byte_tokenizer())
    messages = tuple({**turn, "learn": False} if index in without_loss else turn for index, turn in enumerate(CHAT))
    (rendering,) = renderer.render(Example(HERE, messages=messages), learn)
    if answers is not None:
        assert [rendering.text[start:end] for start, end in rendering.loss_spans] == [
            f"{answer}<|im_end|>" for answer in answers
        ]
    else:
        assert rendering.loss_spans == ((0, len(rendering.text)),)
    assert ("Three." in rendering.text) == has_last
    assert "One." in rendering.text


def test_a_chat_whose_answers_all_have_weight_0_is_refused() -> None:
    renderer = Renderer(byte_tokenizer())
    messages = tuple({**turn, "learn": False} for turn in turns("A?", "One."))
    for learn in ("assistant", "last"):
        with pytest.raises(UnusableError, match="all of its answers have weight 0"):
            renderer.render(Example(HERE, messages=messages), learn)  # type: ignore[arg-type]


DROPS = "{% for m in messages if m.content != 'Drop me.' %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"


def test_a_template_may_drop_earlier_answers_if_only_the_last_has_loss() -> None:
    renderer = Renderer(tokenizer_with(DROPS))
    messages = turns("A?", "Drop me.", "B?", "Two.")
    (rendering,) = renderer.render(Example(HERE, messages=messages), "last")
    assert [rendering.text[start:end] for start, end in rendering.loss_spans] == ["<|assistant|>Two.<|im_end|>"]
    with pytest.raises(UnusableError, match=r"leaves out part of turn 3 \(user\): 'Drop me\.'"):
        renderer.render(Example(HERE, messages=turns("A?", "One.", "Drop me.", "Two.")), "last")
    long = "Drop me."
    with pytest.raises(UnusableError, match=r"leaves out part of turn 1 \(user\)"):
        renderer.render(Example(HERE, messages=turns(long, "One.")), "all")


def test_a_tool_call_that_the_template_drops_is_refused_by_name() -> None:
    renderer = Renderer(byte_tokenizer())
    call = {"type": "function", "function": {"name": "add_numbers", "arguments": {}}}
    question, answer = turns("Hi", "Yes")
    with pytest.raises(UnusableError, match=r"leaves out part of turn 2 \(assistant\): 'add_numbers'"):
        renderer.render(Example(HERE, messages=(question, {**answer, "tool_calls": [call]})))


# The check


@pytest.mark.parametrize(
    ("rendering", "reason"),
    [
        (Rendering("", (), targets=(), parts=("a", "b")), None),
        (Rendering("", (), targets=(), parts=("a", " ")), "one of its texts is empty"),
        (Rendering("a", (), targets=(1.0,)), None),
        (Rendering(" ", (), targets=(1.0,)), "its text is empty"),
        (Rendering("a b", ((0, 1), (2, 3)), targets=(1.0, 0.0)), None),
        (
            Rendering("a b", ((0, 1), (0, 1)), targets=(1.0, 0.0)),
            "2 words have tags, but the tokenizer separates only 1",
        ),
        (Rendering("answer", ((0, 6),), source="ask"), None),
    ],
)
def test_labeled_and_compared_texts_that_would_teach_nothing_are_faults(
    rendering: Rendering, reason: str | None
) -> None:
    assert find_problem(RENDERER, rendering, RENDERER.tokenize_many([rendering])[0]) == reason


def test_white_space_after_the_end_of_a_turn_is_ignored() -> None:
    def fault_of(text: str, *loss_spans: tuple[int, int]) -> str | None:
        rendering = Rendering(text, tuple(loss_spans))
        return find_problem(RENDERER, rendering, RENDERER.tokenize_many([rendering])[0])

    stop = "the end of the answer's turn has no loss, so the model would not learn to stop"
    assert fault_of("a<|im_end|>\n \n", (0, 14)) is None
    assert fault_of("q a<|im_end|>\nb<|im_end|>", (2, 13), (14, 25)) is None
    assert fault_of("q a<|im_end|>\nb", (2, 13), (14, 15)) == stop
    assert fault_of("a\nq b<|im_end|>", (0, 2), (4, 15)) == stop
    assert fault_of("<|im_end|> \n", (10, 12)) == stop
    assert fault_of("q a", (0, 1)) == "no token of it has loss: nothing is left of the answer after rendering"


# Shown rows


def shown_of(directory: Path, base: Path, rows: str, count: int, start: int = 1, **recipe: Any) -> list[Shown]:
    (directory / "rows.jsonl").write_text(rows, encoding="utf-8")
    loaded = Recipe.load({"base": str(base), "data": {"train": str(directory / "rows.jsonl")}, **recipe})
    return list(show(loaded, load_tokenizer(loaded.base), count, start))


def test_rows_are_shown_from_the_given_start_token_by_token_with_loss(tiny_model: Path, tmp_path: Path) -> None:
    rows = (
        '{"question": "q1", "answer": "a1"}\n{\n{"question": "é€😀", "answer": "ü"}\n'
        '{"question": "q4", "answer": "<|pad|>"}\n{"question": "q5", "answer": "a5"}\n'
    )
    malformed, second, third = shown_of(tmp_path, tiny_model, rows, 3, 2)
    assert (malformed.is_malformed, malformed.source[-5:], malformed.pieces) == (True, "row 2", ())
    assert malformed.fault is not None
    assert malformed.fault.startswith("not valid JSON")
    assert not second.is_malformed
    assert second.source.endswith("rows.jsonl row 3")
    assert [(piece.text, piece.has_loss) for piece in second.pieces] == [
        *((mark, False) for mark in ["<|im_start|>", *"user\n", "é", "€", "😀", "<|im_end|>"]),
        *((mark, False) for mark in ["<|im_start|>", *"assistant\n"]),
        ("ü", True),
        ("<|im_end|>", True),
    ]
    assert (second.tokens, second.loss_tokens, second.fault) == (1 + 5 + 9 + 1 + 1 + 10 + 2 + 1, 3, None)
    assert (third.pieces, third.tokens, third.loss_tokens) == ((), 0, 0)
    assert third.fault is not None
    assert third.fault.startswith("turn 2 (assistant) holds <|pad|>")
    assert [each.source[-5:] for each in shown_of(tmp_path, tiny_model, rows, 1)] == ["row 1"]


def test_the_label_of_a_text_is_shown_after_it(tiny_model: Path, tmp_path: Path) -> None:
    rows = '{"text": "ab", "label": "x"}\n{"text": "c", "label": "y"}\n'
    first, second = shown_of(tmp_path, tiny_model, rows, 5, objective="classification")
    assert first.pieces == (Piece("a", False), Piece("b", False), Piece(" x", True))
    assert (first.tokens, first.loss_tokens, first.fault) == (2, 1, None)
    assert second.pieces[-1] == Piece(" y", True)
    rows = '{"text": "ab", "labels": ["x", "y"]}\n{"text": "c", "labels": []}\n{"text": "d", "labels": ["y"]}\n'
    shown = shown_of(tmp_path, tiny_model, rows, 5, objective="multi_label")
    assert [each.pieces[-1] for each in shown] == [Piece(" x, y", True), Piece(" (none)", True), Piece(" y", True)]
    rows = '{"text": "ab", "score": 2}\n{"text": "c", "score": 3.5}\n'
    shown = shown_of(tmp_path, tiny_model, rows, 1, objective="regression")
    assert [each.pieces[-1] for each in shown] == [Piece(" 2.0", True)]


def test_a_partial_character_at_the_end_of_a_text_is_shown_with_its_loss(tiny_model: Path) -> None:
    from tunesmith.data.show import _pieces

    tokenizer = load_tokenizer(Recipe.load({"base": str(tiny_model), "data": {"train": "rows.jsonl"}}).base)
    ids = np.array(tokenizer("a😀")["input_ids"][:4], np.int32)
    shown = _pieces(tokenizer, (ids, np.array([False, False, False, True])))
    assert shown == (Piece("a", False), Piece("�", True))
    broken = np.array(tokenizer("é")["input_ids"][:1] * 5, np.int32)
    pieces = _pieces(tokenizer, (broken, np.array([True, False, False, True, True])))
    assert [(len(piece.text), piece.has_loss) for piece in pieces] == [(4, True), (1, True)], "four bytes at most"
