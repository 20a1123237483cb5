"""Reasoning is found between the tags that a template writes, however the answer is cut into pieces."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stock_templates import STOCK, stock

from tunesmith.data.reasoning import split_reasoning
from tunesmith.data.template import ChatTemplate, special_tokens
from tunesmith.inference.reasoning_text import ReasoningForm, ReasoningText, reasoning_form_of

THINK = ReasoningForm("<think>", "</think>")
GEMMA = {"diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"}


def divided(pieces: Sequence[str], form: ReasoningForm = THINK) -> tuple[str, str]:
    """Reasoning and content of an answer in these pieces."""
    text = ReasoningText(form)
    found = [*(text.add(piece) for piece in pieces), text.finish()]
    reasoning, content = ("".join(part) for part in zip(*found, strict=True))
    return reasoning, content


def form_of(name: str) -> ReasoningForm | None:
    tokenizer = stock(name)
    return reasoning_form_of(ChatTemplate(tokenizer), sorted(special_tokens(tokenizer)))


def test_templates_with_reasoning_have_its_form_and_others_none() -> None:
    forms = {name: form_of(name) for name in STOCK}
    found = {name for name, form in forms.items() if form is not None}
    assert {"qwen3", "deepseek_r1_distill", "glm4moe", "qwen3_5_think"} <= found
    assert not found & {"llama3", "qwen2_5", "qwen3_5_nothink", "gemma3", "phi3", "gptoss"}
    starts = {name: form.start for name, form in forms.items() if form is not None and name not in GEMMA}
    assert set(starts.values()) == {"<think>", ""}
    assert (starts["qwen3"], starts["qwen3_5_think"], starts["nemotron_3_nano"]) == ("<think>", "", "")
    assert all(form.end == "</think>" for name, form in forms.items() if form is not None and name not in GEMMA)


parts = st.text("a<think>/ \n", max_size=20)


@given(parts, parts, st.lists(st.integers(0, 60), max_size=8), st.sampled_from(["", "\n", " "]))
def test_any_pieces_give_what_the_whole_text_gives(reasoning: str, content: str, cuts: list[int], before: str) -> None:
    text = f"{before}<think>{reasoning}</think>{content}"
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert divided(pieces) == split_reasoning(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Six.", ("", "Six.")),
        ("\n Six.", ("", "\n Six.")),
        ("<thin", ("", "<thin")),
        ("<think>\n\n</think>\n\nSix.", ("", "Six.")),
        ("<think>\nThree and three", ("Three and three", "")),
        ("<think>\nThree and </thi", ("Three and </thi", "")),
        ("<think>\na\n\nb\n</think>\n\nSix. <think>no</think>", ("a\n\nb", "Six. <think>no</think>")),
        ("", ("", "")),
    ],
)
def test_only_reasoning_at_the_beginning_is_divided_off(text: str, expected: tuple[str, str]) -> None:
    assert divided([text]) == divided(list(text)) == expected


def test_reasoning_that_the_prompt_opened_needs_no_tag() -> None:
    opened = ReasoningForm("", "</think>")
    for pieces in (["a\n</think>\n\nSix."], list("a\n</think>\n\nSix.")):
        assert divided(pieces, opened) == ("a", "Six.")
    assert divided(["\n</think>\n\nSix."], opened) == ("", "Six.")
