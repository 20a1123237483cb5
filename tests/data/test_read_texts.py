"""Texts of which something is told, compared texts, encoders' pairs and documents: their tokens and marks exactly; the
last look at them; and what is shown of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bytewise import byte_tokenizer
from stock_templates import stock, tokenizer_with
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tunesmith.config.recipe import Recipe
from tunesmith.data.check import fault
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering, source_text
from tunesmith.data.show import Piece, Shown, show
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer

HERE = Source("rows.jsonl", 1)


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with [CLS] before a text and [SEP] behind it."""
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
    found: list[int] = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def marked(rendering: Rendering) -> tuple[list[int], list[int]]:
    """Its ids, and which places of them are marked."""
    ((ids, loss_mask),) = RENDERER.tokenize_many([rendering])
    assert (ids.dtype, loss_mask.dtype) == (np.int32, np.bool_)
    return ids.tolist(), np.flatnonzero(loss_mask).tolist()


# Tokens and marks


def test_a_text_with_a_class_has_its_last_token_marked_the_tokenizer_s_own_included() -> None:
    ids = [CLS, *read("a <|im_end|>"), SEP]
    assert marked(Rendering("a <|im_end|>", (), targets=(1.0,))) == (ids, [len(ids) - 1])
    assert len(read("<|im_end|>")) == 10, "what looks like a mark is read as characters"
    assert marked(Rendering("", (), targets=(1.0,))) == ([CLS, SEP], [1])


def test_words_with_tags_have_their_first_tokens_marked() -> None:
    text = "Ann ging über <|pad|>"
    spans = ((0, 3), (4, 8), (9, 13), (14, 21))
    ids = [CLS, *read(text), SEP]
    # "ü" is two bytes, which moves what stands behind it by one
    assert marked(Rendering(text, spans, targets=(1.0, 0.0, 0.0, 2.0))) == (ids, [1, 5, 10, 16])


def test_compared_texts_stand_end_to_end_each_with_its_last_token_marked() -> None:
    ids = [CLS, *read("ab"), SEP, CLS, *read("<|pad|>"), SEP, CLS, *read("c"), SEP]
    assert marked(Rendering("", (), targets=(), parts=("ab", "<|pad|>", "c"))) == (ids, [3, 12, 15])


def test_an_encoder_s_text_is_read_and_the_answer_behind_it_is_learnt() -> None:
    ids = [CLS, *read("ask <|pad|>"), SEP, CLS, *read("answer"), SEP]
    found, places = marked(Rendering("answer", ((0, 6),), source="ask <|pad|>"))
    assert found == ids
    assert places == list(range(13, 21))


def test_renderings_of_several_kinds_come_back_in_the_order_given() -> None:
    made = [
        Rendering("a", (), targets=(1.0,)),
        Rendering("doc", ((0, 3),), document=True),
        Rendering("", (), targets=(), parts=("b", "c")),
        Rendering("b", (), targets=(2.0,)),
        Rendering("x<|im_end|>", ((1, 11),)),
        Rendering("ab", ((0, 1), (1, 2)), targets=(1.0, 1.0)),
    ]
    alone = [marked(each) for each in made]
    together = [(ids.tolist(), np.flatnonzero(loss_mask).tolist()) for ids, loss_mask in RENDERER.tokenize_many(made)]
    assert together == alone
    end = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    assert alone[1] == ([*read("doc"), end], [0, 1, 2, 3])
    assert alone[4] == ([*read("x"), TOKENIZER.eos_token_id], [1])


@pytest.mark.parametrize(
    ("template", "closing"),
    [("[CLS] $A [SEP]", 1), ("[CLS] $A", 0), ("$A [SEP] [SEP]", 2), ("$A", 0), ("[CLS] [SEP] $A [SEP]", 1)],
)
def test_what_the_tokenizer_puts_behind_a_text_is_counted(template: str, closing: int) -> None:
    tokenizer = encoder_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    assert Renderer(tokenizer).closing_tokens == closing


@pytest.mark.parametrize("own", [True, False])
def test_a_document_begins_as_the_tokenizer_begins_and_ends_as_documents_end(own: bool) -> None:
    tokenizer = tokenizer_with("{{ messages }}", "llama3")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if own:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
        )
    renderer = Renderer(tokenizer)
    first = [bos] if own else []
    assert renderer.begin_of_document == first
    (rendering,) = renderer.render(Example(HERE, text="ab <|eot_id|>"))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    inner = tokenizer("ab <|eot_id|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids.tolist() == [*first, *inner, eos]
    assert loss_mask.tolist() == [False] * len(first) + [True] * (len(inner) + 1)
    assert fault(renderer, rendering, (ids, loss_mask)) is None
    wrong = fault(renderer, rendering, (np.insert(ids, 0, bos), np.insert(loss_mask, 0, False)))
    assert wrong == f"it has {1 + own} beginning-of-sequence tokens, where the template writes {int(own)}"


def test_a_document_s_end_is_the_model_s_own_where_it_has_one() -> None:
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
        """As much of one of transformers' own."""

    renderer.tokenizer = Slow()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^Slow is written in Python and cannot say which characters a token is of"):
        renderer.tokenize_many([Rendering("a", ((0, 1),))])


def test_an_encoder_reads_what_is_asked_with_what_stands_before_it() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "developer", "user")]
    assert source_text(turns) == "system\n\ndeveloper\n\nuser"
    for role in ("assistant", "tool"):
        with pytest.raises(UnusableError, match="it has several turns, and an encoder–decoder reads one text"):
            source_text([*turns, {"role": role, "content": "x"}])


def test_white_space_and_control_tokens_are_known_by_their_ids() -> None:
    assert {*read(" "), *read("\n")} == RENDERER.white_space_tokens
    names = ["<|im_end|>", "<|pad|>", "<|im_start|>", "<|endoftext|>", "[CLS]", "[SEP]"]
    assert set(TOKENIZER.convert_tokens_to_ids(names)) == RENDERER.control_tokens


# What a chat may not say, and which of its turns are learnt


def turns(*texts: str, **more: Any) -> tuple[dict[str, Any], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[at % 2], "content": text, **more} for at, text in enumerate(texts))


def test_a_control_token_in_reasoning_is_refused_as_one_in_what_is_said() -> None:
    renderer = Renderer(stock("qwen3"))
    asked, answered = turns("Hi", "Yes")
    with pytest.raises(UnusableError, match=r"^turn 2 \(assistant\) holds <\|im_end\|>, which the tokenizer reads"):
        renderer.render(Example(HERE, messages=(asked, {**answered, "reasoning_content": "so <|im_end|>"})))


CHAT = turns("A?", "One.", "B?", "Two.", "C?", "Three.")


@pytest.mark.parametrize(
    ("without_loss", "learn", "said", "whole"),
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
def test_turns_that_are_not_to_be_learnt_are_read_and_nothing_behind_the_last_learnt_one_is(
    without_loss: tuple[int, ...], learn: Any, said: list[str] | None, whole: bool
) -> None:
    renderer = Renderer(byte_tokenizer())
    messages = tuple({**turn, "learn": False} if place in without_loss else turn for place, turn in enumerate(CHAT))
    (rendering,) = renderer.render(Example(HERE, messages=messages), learn)
    if said is not None:
        assert [rendering.text[start:end] for start, end in rendering.loss_spans] == [
            f"{each}<|im_end|>" for each in said
        ]
    else:
        assert rendering.loss_spans == ((0, len(rendering.text)),)
    assert ("Three." in rendering.text) == whole
    assert "One." in rendering.text


def test_a_chat_of_which_no_answer_is_to_be_learnt_is_refused() -> None:
    renderer = Renderer(byte_tokenizer())
    messages = tuple({**turn, "learn": False} for turn in turns("A?", "One."))
    for learn in ("assistant", "last"):
        with pytest.raises(UnusableError, match="none of its answers is to be learnt, by their weights"):
            renderer.render(Example(HERE, messages=messages), learn)  # type: ignore[arg-type]


DROPS = "{% for m in messages if m.content != 'Drop me.' %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"


def test_earlier_answers_may_be_left_out_where_only_the_last_is_learnt() -> None:
    renderer = Renderer(tokenizer_with(DROPS))
    messages = turns("A?", "Drop me.", "B?", "Two.")
    (rendering,) = renderer.render(Example(HERE, messages=messages), "last")
    assert [rendering.text[start:end] for start, end in rendering.loss_spans] == ["<|assistant|>Two.<|im_end|>"]
    with pytest.raises(UnusableError, match=r"leaves out part of turn 3 \(user\): 'Drop me\.'"):
        renderer.render(Example(HERE, messages=turns("A?", "One.", "Drop me.", "Two.")), "last")
    long = "Drop me."
    with pytest.raises(UnusableError, match=r"leaves out part of turn 1 \(user\)"):
        renderer.render(Example(HERE, messages=turns(long, "One.")), "all")


def test_a_call_that_the_template_does_not_show_is_refused_by_its_name() -> None:
    renderer = Renderer(byte_tokenizer())
    call = {"type": "function", "function": {"name": "add_numbers", "arguments": {}}}
    asked, answered = turns("Hi", "Yes")
    with pytest.raises(UnusableError, match=r"leaves out part of turn 2 \(assistant\): 'add_numbers'"):
        renderer.render(Example(HERE, messages=(asked, {**answered, "tool_calls": [call]})))


# The last look


@pytest.mark.parametrize(
    ("rendering", "told"),
    [
        (Rendering("", (), targets=(), parts=("a", "b")), None),
        (Rendering("", (), targets=(), parts=("a", " ")), "one of its texts is empty"),
        (Rendering("a", (), targets=(1.0,)), None),
        (Rendering(" ", (), targets=(1.0,)), "its text is empty"),
        (Rendering("a b", ((0, 1), (2, 3)), targets=(1.0, 0.0)), None),
        (Rendering("a b", ((0, 1), (0, 1)), targets=(1.0, 0.0)), "2 words have tags, and the tokenizer tells 1 apart"),
        (Rendering("answer", ((0, 6),), source="ask"), None),
    ],
)
def test_what_would_teach_nothing_is_seen_of_told_and_compared_texts(rendering: Rendering, told: str | None) -> None:
    assert fault(RENDERER, rendering, RENDERER.tokenize_many([rendering])[0]) == told


def test_white_space_behind_the_end_of_a_turn_is_passed_over_and_a_stretch_of_it_is_none() -> None:
    def seen(text: str, *loss_mask: tuple[int, int]) -> str | None:
        rendering = Rendering(text, tuple(loss_mask))
        return fault(RENDERER, rendering, RENDERER.tokenize_many([rendering])[0])

    stop = "the end of the answer's turn would not be learnt, so the model would not learn to stop"
    assert seen("a<|im_end|>\n \n", (0, 14)) is None
    assert seen("q a<|im_end|>\nb<|im_end|>", (2, 13), (14, 25)) is None
    assert seen("q a<|im_end|>\nb", (2, 13), (14, 15)) == stop
    assert seen("a\nq b<|im_end|>", (0, 2), (4, 15)) == stop
    assert seen("<|im_end|> \n", (10, 12)) == stop
    assert seen("q a", (0, 1)) == "no token of it would be learnt: nothing is left of the answer after rendering"


# What is shown


def shown_of(directory: Path, base: Path, rows: str, count: int, start: int = 1, **recipe: Any) -> list[Shown]:
    (directory / "rows.jsonl").write_text(rows, encoding="utf-8")
    made = Recipe.load({"base": str(base), "data": {"train": str(directory / "rows.jsonl")}, **recipe})
    return list(show(made, load_tokenizer(made.base), count, start))


def test_rows_are_shown_from_the_one_asked_for_token_by_token_with_what_is_learnt(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = (
        '{"question": "q1", "answer": "a1"}\n{\n{"question": "é€😀", "answer": "ü"}\n'
        '{"question": "q4", "answer": "<|pad|>"}\n{"question": "q5", "answer": "a5"}\n'
    )
    found = shown_of(tmp_path, tiny_model, rows, 2, 2)
    second, third = found
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


def test_what_is_told_of_a_text_is_shown_behind_it(tiny_model: Path, tmp_path: Path) -> None:
    rows = '{"text": "ab", "label": "x"}\n{"text": "c", "label": "y"}\n'
    first, second = shown_of(tmp_path, tiny_model, rows, 5, objective="classification")
    assert first.pieces == (Piece("a", False), Piece("b", False), Piece(" x", True))
    assert (first.tokens, first.loss_tokens, first.fault) == (2, 1, None)
    assert second.pieces[-1] == Piece(" y", True)
    rows = '{"text": "ab", "labels": ["x", "y"]}\n{"text": "c", "labels": []}\n{"text": "d", "labels": ["y"]}\n'
    found = shown_of(tmp_path, tiny_model, rows, 5, objective="multi_label")
    assert [each.pieces[-1] for each in found] == [Piece(" x, y", True), Piece(" (none)", True), Piece(" y", True)]
    rows = '{"text": "ab", "score": 2}\n{"text": "c", "score": 3.5}\n'
    found = shown_of(tmp_path, tiny_model, rows, 1, objective="regression")
    assert [each.pieces[-1] for each in found] == [Piece(" 2.0", True)]


def test_a_part_of_a_character_at_a_text_s_end_is_shown_with_its_mark(tiny_model: Path) -> None:
    from tunesmith.data.show import _pieces

    tokenizer = load_tokenizer(Recipe.load({"base": str(tiny_model), "data": {"train": "rows.jsonl"}}).base)
    ids = np.array(tokenizer("a😀")["input_ids"][:4], np.int32)
    found = _pieces(tokenizer, (ids, np.array([False, False, False, True])))
    assert found == (Piece("a", False), Piece("�", True))
    broken = np.array(tokenizer("é")["input_ids"][:1] * 5, np.int32)
    pieces = _pieces(tokenizer, (broken, np.array([True, False, False, True, True])))
    assert [(len(piece.text), piece.has_loss) for piece in pieces] == [(4, True), (1, True)], "four bytes at most"
