"""Rendering and loss masks of chats, with the stock templates of well-known models."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_templates import STOCK, TWINS, stock, tokenizer_with
from transformers.utils import logging as transformers_logging

from tunesmith.data.check import find_problem
from tunesmith.data.example import Completion, Example, Source
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.data.turns import MalformedRowError, turns_of
from tunesmith.errors import UserError

QUESTION, ANSWER = "What is two and two?", "It is four."


def turns(*texts: str, system: str | None = None) -> Example:
    """A chat of the texts, alternating between user and assistant."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return Example(
        Source("rows.jsonl", 1),
        messages=(*first, *({"role": roles[index % 2], "content": text} for index, text in enumerate(texts))),
    )


def texts_with_loss(renderer: Renderer, example: Example, learn: str = "assistant") -> list[str]:
    """The text of each span with loss, decoded from the tokens."""
    texts = []
    for ids, loss_mask in renderer.tokenize_many(renderer.render(example, learn)):
        starts = np.flatnonzero(loss_mask & ~np.append(False, loss_mask[:-1]))
        ends = np.flatnonzero(loss_mask & ~np.append(loss_mask[1:], False)) + 1
        texts += [renderer.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
    return texts


@pytest.mark.parametrize("name", STOCK)
def test_stock_templates_have_loss_on_the_answer_and_its_end_only(name):
    """Guards against https://github.com/marin-community/marin/issues/7237."""
    renderer = Renderer(stock(name))
    (text,) = texts_with_loss(renderer, turns(QUESTION, ANSWER))
    assert ANSWER in text
    assert "two and two" not in text
    (end,) = [token for token in renderer.template.special_tokens if text.strip().endswith(token)]
    assert renderer.tokenizer.convert_tokens_to_ids(end) in renderer.stop_tokens


@pytest.mark.parametrize("name", STOCK)
def test_the_prompt_in_training_and_in_inference_has_the_same_tokens(name):
    """Guards against https://github.com/hiyouga/LlamaFactory/issues/5232."""
    renderer = Renderer(stock(name))
    example = turns(QUESTION, ANSWER, "And three?", "Six, of course.")
    renderings = renderer.render(example)
    for index in (1, 3):
        prompt = renderer.tokenizer(renderer.prompt(example.messages[:index]), add_special_tokens=False)["input_ids"]
        answers = [
            ids[: len(prompt)].tolist() == prompt and loss_mask[len(prompt)]
            for ids, loss_mask in renderer.tokenize_many(renderings)
        ]
        assert any(answers), f"turn {index} is trained after another prompt than in inference"


@pytest.mark.parametrize("name", TWINS)
def test_spans_from_stock_templates_match_the_marks_in_trl_s_versions(name):
    ours, theirs = (
        texts_with_loss(Renderer(stock(variant)), turns(QUESTION, ANSWER))[0] for variant in (name, f"{name}_training")
    )
    assert ours.strip() in theirs
    rest = theirs.replace(ours.strip(), "")
    assert re.fullmatch(r"(<[^>]*>|\s|assistant)*", rest), f"their versions also have loss on {rest!r}"


@pytest.mark.parametrize("name", STOCK)
def test_every_assistant_turn_has_loss_once(name):
    text = texts_with_loss(Renderer(stock(name)), turns("One?", "First answer.", "Two?", "Second answer."))
    assert len(text) == 2
    assert sum("First answer." in each for each in text) == sum("Second answer." in each for each in text) == 1


def test_gemma_has_loss_on_its_end_of_turn():
    """Guards against https://github.com/axolotl-ai-cloud/axolotl/issues/3754."""
    assert texts_with_loss(Renderer(stock("gemma3")), turns(QUESTION, ANSWER)) == [f"{ANSWER}<end_of_turn>"]


def test_the_end_of_turn_has_loss_also_if_it_is_the_padding_token():
    """Guards against https://github.com/huggingface/trl/issues/6357."""
    tokenizer = stock("qwen2_5")
    tokenizer.pad_token = tokenizer.eos_token
    assert texts_with_loss(Renderer(tokenizer), turns(QUESTION, ANSWER)) == [f"{ANSWER}<|im_end|>"]


def test_reasoning_in_earlier_turns_has_loss_in_a_rendering_of_its_own():
    """Guards against https://github.com/huggingface/trl/issues/6363."""
    first, second = "<think>\nadd\n</think>\n\nFour.", "<think>\nadd more\n</think>\n\nSix."
    renderings = Renderer(stock("qwen3")).render(turns(QUESTION, first, "And three?", second))
    assert [each.text[slice(*each.loss_spans[0])] for each in renderings] == [
        f"{first}<|im_end|>",
        f"{second}<|im_end|>",
    ]
    assert "add\n" not in renderings[1].text, "in inference, the model reads earlier turns without their reasoning"


def ranked(*completions):
    """A prompt with completions, each as the texts of its turns from the assistant's on."""
    own = [tuple(turns("", *texts).messages[1:]) for texts in completions]
    scored = tuple(Completion(messages, -float(number)) for number, messages in enumerate(own))
    return Example(Source("rows.jsonl", 1), messages=({"role": "user", "content": QUESTION},), completions=scored)


def test_a_completion_whose_answers_need_renderings_of_their_own_is_refused_by_number():
    several = ("<think>\nadd\n</think>\n\nFour.", "And three?", "<think>\nadd more\n</think>\n\nSix.")
    renderer = Renderer(stock("qwen3"))
    for completions, number in (((several, ("Four.",)), 1), ((("Four.",), several), 2)):
        with pytest.raises(UnusableError, match=f"^completion {number} has several answers, and the chat template"):
            renderer.completions(ranked(*completions))


@pytest.mark.parametrize("with_targets", [False, True])
def test_completions_are_rendered_after_their_prompt_with_their_scores(with_targets):
    rendering = Renderer(stock("qwen3")).completions(ranked(("Four.",), ("Five.",)), with_targets)
    assert rendering.scores == (0.0, -1.0)
    assert rendering.targets == ((0.0, -1.0) if with_targets else None)
    for each, answer in zip(rendering.completions, ("Four.", "Five."), strict=True):
        ((start, end),) = each.loss_spans
        assert QUESTION in each.text[:start]
        assert each.text[start:end] == f"<think>\n\n</think>\n\n{answer}<|im_end|>"


REASONED = {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."}
NOT_RENDERED = {  # with the reason
    "deepseek_r1_distill": "leaves out", "deepseekv3": "leaves out",  # removed even from the last answer
    "gemma4": "leaves out", "gemma4_v3": "leaves out", "gemma4_v4": "leaves out",  # only written before tool calls
    "qwen3_5_nothink": "ends its prompt with",  # its prompt already ends with empty reasoning
}  # fmt: skip


def chat(*messages, tools=None):
    return Example(Source("rows.jsonl", 1), messages=({"role": "user", "content": QUESTION}, *messages), tools=tools)


@pytest.mark.parametrize("name", STOCK)
def test_reasoning_has_loss_before_the_answer_or_the_row_is_refused(name):
    renderer = Renderer(stock(name))
    if name in NOT_RENDERED:
        with pytest.raises(UnusableError, match=NOT_RENDERED[name]):
            renderer.render(chat(REASONED))
        return
    (text,) = texts_with_loss(renderer, chat(REASONED))
    assert 0 <= text.find("Add them.") < text.find("Four.")
    assert text.count("Add them.") == text.count("Four.") == 1


@pytest.mark.parametrize("name", sorted(set(STOCK) - set(NOT_RENDERED)))
def test_think_in_the_content_gives_the_same_tokens_as_reasoning_content(name):
    in_content = {"role": "assistant", "content": "<think>\nAdd them.\n</think>\n\nFour."}
    renderer = Renderer(stock(name))
    assert renderer.render(chat(in_content)) == renderer.render(chat(REASONED))


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_reasoning_may_contain_its_answer(name):
    answer = {"role": "assistant", "content": "42", "reasoning_content": "6 * 7 = 42"}
    (text,) = texts_with_loss(Renderer(stock(name)), chat(answer))
    assert text.count("42") == 2


def test_reasoning_is_written_as_think_if_the_template_reads_no_such_key():
    (text,) = texts_with_loss(Renderer(stock("qwen2_5")), chat(REASONED))
    assert text.strip() == "<think>\nAdd them.\n</think>\n\nFour.<|im_end|>"


def test_think_in_the_content_is_not_changed_if_the_template_reads_no_reasoning():
    answer = {"role": "assistant", "content": " <think>Add them. </think>Four."}
    (text,) = texts_with_loss(Renderer(stock("qwen2_5")), chat(answer))
    assert text.rstrip() == " <think>Add them. </think>Four.<|im_end|>"


def test_reasoning_is_handed_over_by_the_key_that_the_template_reads():
    (text,) = texts_with_loss(Renderer(stock("gptoss")), chat(REASONED))
    assert text.startswith("<|channel|>analysis<|message|>Add them.<|end|>")


def test_reasoning_before_a_tool_call_stays_in_the_turns_after_it():
    call = {"type": "function", "function": {"name": "add_numbers", "arguments": {"a": 2}}}
    tool = {"type": "function", "function": {"name": "add_numbers", "parameters": {}}}
    calling = {"role": "assistant", "content": "", "reasoning_content": "Use a tool.", "tool_calls": [call]}
    example = chat(calling, {"role": "tool", "content": "4"}, REASONED, tools=(tool,))
    rendering = Renderer(stock("qwen3")).render(example)[-1]
    first, second = (rendering.text[start:end] for start, end in rendering.loss_spans)
    assert first.startswith("<think>\nUse a tool.\n</think>\n\n<tool_call>")
    assert second == "<think>\nAdd them.\n</think>\n\nFour.<|im_end|>"


def test_reasoning_of_an_earlier_turn_without_loss_is_read_as_in_inference():
    earlier = {**REASONED, "learn": False}
    second = {"role": "assistant", "content": "Six.", "reasoning_content": "Two more."}
    (rendering,) = Renderer(stock("qwen3")).render(chat(earlier, {"role": "user", "content": "And three?"}, second))
    assert "Add them." not in rendering.text
    assert [rendering.text[slice(*span)] for span in rendering.loss_spans] == [
        "<think>\nTwo more.\n</think>\n\nSix.<|im_end|>"
    ]


def test_reasoning_that_only_occurs_elsewhere_in_the_chat_counts_as_left_out():
    drops = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% set r = m.reasoning_content %}<|im_end|>{% endfor %}"
    )
    answer = {"role": "assistant", "content": "Four.", "reasoning_content": QUESTION}
    with pytest.raises(UnusableError, match=r"leaves out part of turn 2 \(assistant\): 'What is two and two\?'"):
        Renderer(tokenizer_with(drops)).render(chat(answer))


def test_the_first_token_of_the_answer_has_loss():
    """Guards against https://github.com/huggingface/trl/issues/6433."""
    for answer in ("\n\nFour.", " four", "4", "é"):
        text = texts_with_loss(Renderer(stock("llama3")), turns(QUESTION, answer))
        assert text == [f"{answer.strip()}<|eot_id|>"]  # Llama 3's template trims


def test_there_is_one_bos_token_if_the_template_writes_one():
    """Guards against https://github.com/OpenRLHF/OpenRLHF/issues/393."""
    for name in ("llama3", "gemma", "deepseekv3"):
        renderer = Renderer(stock(name))
        ((ids, _),) = renderer.tokenize_many(renderer.render(turns(QUESTION, ANSWER)))
        assert (ids == renderer.tokenizer.bos_token_id).sum() == 1
        assert ids[0] == renderer.tokenizer.bos_token_id


def test_rows_with_special_tokens_in_their_content_are_refused():
    """Guards against https://github.com/MakazhanAlpamys/Soup/issues/781."""
    renderer = Renderer(stock("llama3"))
    with pytest.raises(UnusableError, match=r"turn 1 \(user\) holds <\|begin_of_text\|>"):
        renderer.render(turns("<|begin_of_text|>" + QUESTION, ANSWER))
    with pytest.raises(UnusableError, match=r"turn 2 \(assistant\) holds <\|eot_id\|>"):
        renderer.render(turns(QUESTION, ANSWER + "<|eot_id|>"))


def test_content_that_a_template_leaves_out_is_refused_by_turn():
    with pytest.raises(UnusableError, match=r"leaves out part of turn 2 \(assistant\)"):
        Renderer(stock("deepseek_r1_distill")).render(turns(QUESTION, "<think>so</think>Four."))
    no_system = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(UnusableError, match=r"leaves out part of turn 1 \(system\): 'Be brief.'"):
        Renderer(tokenizer_with(no_system)).render(turns(QUESTION, ANSWER, system="Be brief."))
    tool = {"type": "function", "function": {"name": "add_numbers", "parameters": {}}}
    chat = Example(Source("rows.jsonl", 1), messages=turns(QUESTION, ANSWER).messages, tools=(tool,))
    with pytest.raises(UnusableError, match=r"does not support tools \(add_numbers\)\. Use a base whose template does"):
        Renderer(stock("gemma")).render(chat)


def test_the_error_of_a_template_that_rejects_a_role_is_quoted():
    with pytest.raises(UnusableError, match="System role not supported"):
        Renderer(stock("gemma")).render(turns(QUESTION, ANSWER, system="Be brief."))


def test_a_template_that_never_ends_the_answer_is_refused():
    """Guards against https://github.com/unslothai/unsloth/issues/416."""
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UnusableError, match="would never learn to stop"):
        Renderer(tokenizer_with(endless)).render(turns(QUESTION, ANSWER))


def test_a_missing_chat_template_is_an_error_with_advice():
    tokenizer = stock("gemma")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*base.chat_template"):
        Renderer(tokenizer).render(turns(QUESTION, ANSWER))


MARKED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_generation_marks_are_extended_past_the_end_of_turn():
    """Guards against https://github.com/huggingface/trl/issues/5988."""
    assert texts_with_loss(Renderer(tokenizer_with(MARKED)), turns("A?", "One.", "B?", "Two.")) == [
        "One.<|im_end|>",
        "Two.<|im_end|>",
    ]


def test_the_last_of_two_answers_in_a_row_is_learned_alone():
    chat = ({"role": "user", "content": "A?"}, *({"role": "assistant", "content": each} for each in ("One.", "Two.")))
    example = Example(Source("rows.jsonl", 1), messages=chat)
    assert texts_with_loss(Renderer(tokenizer_with(MARKED)), example, "last") == ["Two.<|im_end|>"]


def test_no_warning_about_a_template_without_marks_reaches_the_screen(caplog):
    """transformers warns of it at each row, although the spans are found without marks."""
    transformers_logging.enable_propagation()
    try:
        Renderer(stock("qwen2_5")).render(turns(QUESTION, ANSWER))
    finally:
        transformers_logging.disable_propagation()
    assert not caplog.records


def test_empty_generation_marks_do_not_select_everything():
    """Guards against https://github.com/NVIDIA-NeMo/Megatron-Bridge/issues/3359."""
    unmarked = MARKED.replace(
        "{% generation %}{{ m.content }}{% endgeneration %}", "{% generation %}{% endgeneration %}{{ m.content }}"
    )
    assert texts_with_loss(Renderer(tokenizer_with(unmarked)), turns("A?", "One.")) == ["One.<|im_end|>"]


def test_learn_last_and_all():
    renderer = Renderer(stock("qwen2_5"))
    example = turns("A?", "One.", "B?", "Two.")
    assert texts_with_loss(renderer, example, "last") == ["Two.<|im_end|>"]
    (text,) = texts_with_loss(renderer, example, "all")
    assert text.startswith("<|im_start|>system")
    assert text.endswith("Two.<|im_end|>")


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day():
    text = Renderer(stock("llama3_2")).render(turns(QUESTION, ANSWER))[0].text
    assert "Today Date: 01 Jan 2025" in text


def test_raw_text_is_read_as_characters_and_ends_with_an_end_of_document():
    renderer = Renderer(stock("llama3"))
    text = "HTML knows <|eot_id|> as little as <s>."
    ((ids, loss_mask),) = renderer.tokenize_many(renderer.render(Example(Source("a.txt", 1), text=text)))
    assert renderer.tokenizer.decode(ids[:-1]) == text
    assert ids[-1] == renderer.tokenizer.eos_token_id
    assert (ids == renderer.tokenizer.eos_token_id).sum() == 1
    assert loss_mask.all()


def test_turns_of_weight_0_have_no_loss_and_turns_after_the_last_loss_are_cut():
    rows = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "First.", "weight": 0}]
    rows += [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "Second.", "weight": 1}]
    rows += [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "Third.", "train": False}]
    renderer = Renderer(stock("qwen2_5"))
    example = Example(Source("rows.jsonl", 1), messages=tuple(turns_of(rows, "messages")))
    (text,) = texts_with_loss(renderer, example)
    assert text.strip() == "Second.<|im_end|>"
    (rendering,) = renderer.render(example)
    assert "First." in rendering.text
    assert "c?" not in rendering.text
    with pytest.raises(UnusableError, match="all of its answers have weight 0"):
        renderer.render(example, learn="last")
    with pytest.raises(MalformedRowError, match=r"the weight of turn 1 of messages is a number \(0.5\), not 0 or 1"):
        turns_of([{"role": "assistant", "content": "x", "weight": 0.5}], "messages")


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=150)
@given(name=st.sampled_from(["qwen2_5", "llama3", "gemma3", "phi3", "qwen3"]), question=CONTENT, answer=CONTENT)
def test_the_prompt_is_a_prefix_and_the_rest_has_loss_for_any_content(name, question, answer):
    renderer = Renderer(RENDERERS.setdefault(name, stock(name)))
    try:
        (rendering,) = renderer.render(turns(question, answer))
    except UnusableError:
        return  # a template may reject or drop content that it takes for its own marks, but never silently
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    prompt = renderer.tokenizer(renderer.prompt(turns(question).messages), add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)].tolist() == prompt
    assert not loss_mask[: len(prompt)].any()
    assert loss_mask[len(prompt)]
    assert find_problem(renderer, rendering, (ids, loss_mask)) is None


RENDERERS: dict = {}


def test_a_token_across_the_end_of_the_prompt_is_split():
    tokenizer = word_tokenizer()
    renderer = Renderer(tokenizer)
    ((ids, loss_mask),) = renderer.tokenize_many(renderer.render(turns("q", " answer")))
    prompt = tokenizer(renderer.prompt(turns("q").messages), add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(ids[loss_mask]) == " answer<|im_end|>"


def word_tokenizer():
    """Joins two spaces into one token; its template's prompt ends in a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ĠĠ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: {% else %}{{ m.content }}<|im_end|>"
        "{% endif %}{% endfor %}"
    )
    return fast
