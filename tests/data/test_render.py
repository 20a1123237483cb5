"""What is learnt of a chat, on the stock templates of well-known models; named after what peers' users ran into."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_templates import STOCK, TWINS, stock, tokenizer_with

from tunesmith.data.check import fault
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.data.turns import NotUnderstoodError, turns_of
from tunesmith.errors import UserError

ASKED, ANSWERED = "What is two and two?", "It is four."


def turns(*texts: str, system: str | None = None) -> Example:
    """A chat of the texts in turn, the user's first."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return Example(
        Source("rows.jsonl", 1),
        messages=(*first, *({"role": roles[at % 2], "content": text} for at, text in enumerate(texts))),
    )


def texts_with_loss(renderer: Renderer, example: Example, learn: str = "assistant") -> list[str]:
    """What is learnt of the example, a text for each turn, as the *tokens* say."""
    said = []
    for ids, loss_mask in renderer.tokenize_many(renderer.render(example, learn)):
        starts = np.flatnonzero(loss_mask & ~np.append(False, loss_mask[:-1]))
        ends = np.flatnonzero(loss_mask & ~np.append(loss_mask[1:], False)) + 1
        said += [renderer.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
    return said


@pytest.mark.parametrize("name", STOCK)
def test_marin_7237_stock_templates_without_marks_learn_the_answer_and_its_end_and_nothing_else(name):
    renderer = Renderer(stock(name))
    (said,) = texts_with_loss(renderer, turns(ASKED, ANSWERED))
    assert ANSWERED in said
    assert "two and two" not in said
    (end,) = [token for token in renderer.template.special_tokens if said.strip().endswith(token)]
    assert renderer.tokenizer.convert_tokens_to_ids(end) in renderer.stop_tokens


@pytest.mark.parametrize("name", STOCK)
def test_llamafactory_5232_the_prompt_in_use_is_token_for_token_the_one_in_training(name):
    renderer = Renderer(stock(name))
    example = turns(ASKED, ANSWERED, "And three?", "Six, of course.")
    renderings = renderer.render(example)
    for place in (1, 3):
        prompt = renderer.tokenizer(renderer.prompt(example.messages[:place]), add_special_tokens=False)["input_ids"]
        answers = [
            ids[: len(prompt)].tolist() == prompt and loss_mask[len(prompt)]
            for ids, loss_mask in renderer.tokenize_many(renderings)
        ]
        assert any(answers), f"turn {place} is learnt after another prompt than it gets in use"


@pytest.mark.parametrize("name", TWINS)
def test_what_is_told_from_a_stock_template_is_what_trl_marked_in_it_by_hand(name):
    ours, theirs = (
        texts_with_loss(Renderer(stock(variant)), turns(ASKED, ANSWERED))[0] for variant in (name, f"{name}_training")
    )
    assert ours.strip() in theirs
    rest = theirs.replace(ours.strip(), "")
    assert re.fullmatch(r"(<[^>]*>|\s|assistant)*", rest), f"they also learn {rest!r}"


@pytest.mark.parametrize("name", STOCK)
def test_every_turn_of_the_assistant_is_learnt_once(name):
    said = texts_with_loss(Renderer(stock(name)), turns("One?", "First answer.", "Two?", "Second answer."))
    assert len(said) == 2
    assert sum("First answer." in each for each in said) == sum("Second answer." in each for each in said) == 1


def test_axolotl_3754_gemma_learns_its_end_of_turn():
    assert texts_with_loss(Renderer(stock("gemma3")), turns(ASKED, ANSWERED)) == [f"{ANSWERED}<end_of_turn>"]


def test_trl_6357_the_end_is_learnt_also_where_padding_is_the_same_token():
    tokenizer = stock("qwen2_5")
    tokenizer.pad_token = tokenizer.eos_token
    assert texts_with_loss(Renderer(tokenizer), turns(ASKED, ANSWERED)) == [f"{ANSWERED}<|im_end|>"]


def test_trl_6363_reasoning_in_earlier_turns_is_learnt_where_it_was_written():
    first, second = "<think>\nadd\n</think>\n\nFour.", "<think>\nadd more\n</think>\n\nSix."
    renderings = Renderer(stock("qwen3")).render(turns(ASKED, first, "And three?", second))
    assert [each.text[slice(*each.loss_mask[0])] for each in renderings] == [
        f"{first}<|im_end|>",
        f"{second}<|im_end|>",
    ]
    assert "add\n" not in renderings[1].text, "what the model reads in use has the earlier reasoning taken out"


def test_trl_6433_no_leading_token_of_the_answer_is_left_out():
    for answer in ("\n\nFour.", " four", "4", "é"):
        said = texts_with_loss(Renderer(stock("llama3")), turns(ASKED, answer))
        assert said == [f"{answer.strip()}<|eot_id|>"]  # Llama 3's template trims


def test_openrlhf_393_there_is_one_beginning_of_sequence_where_the_template_writes_one():
    for name in ("llama3", "gemma", "deepseekv3"):
        renderer = Renderer(stock(name))
        ((ids, _),) = renderer.tokenize_many(renderer.render(turns(ASKED, ANSWERED)))
        assert (ids == renderer.tokenizer.bos_token_id).sum() == 1
        assert ids[0] == renderer.tokenizer.bos_token_id


def test_soup_781_rows_that_bring_their_own_special_tokens_are_refused():
    renderer = Renderer(stock("llama3"))
    with pytest.raises(UnusableError, match=r"turn 1 \(user\) holds <\|begin_of_text\|>"):
        renderer.render(turns("<|begin_of_text|>" + ASKED, ANSWERED))
    with pytest.raises(UnusableError, match=r"turn 2 \(assistant\) holds <\|eot_id\|>"):
        renderer.render(turns(ASKED, ANSWERED + "<|eot_id|>"))


def test_what_a_template_leaves_out_is_refused_by_turn():
    with pytest.raises(UnusableError, match=r"leaves out part of turn 2 \(assistant\)"):
        Renderer(stock("deepseek_r1_distill")).render(turns(ASKED, "<think>so</think>Four."))
    no_system = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(UnusableError, match=r"leaves out part of turn 1 \(system\): 'Be brief.'"):
        Renderer(tokenizer_with(no_system)).render(turns(ASKED, ANSWERED, system="Be brief."))
    tool = {"type": "function", "function": {"name": "add_numbers", "parameters": {}}}
    chat = Example(Source("rows.jsonl", 1), messages=turns(ASKED, ANSWERED).messages, tools=(tool,))
    with pytest.raises(UnusableError, match="no place for tools"):
        Renderer(stock("gemma")).render(chat)


def test_a_template_that_refuses_a_role_is_quoted():
    with pytest.raises(UnusableError, match="System role not supported"):
        Renderer(stock("gemma")).render(turns(ASKED, ANSWERED, system="Be brief."))


def test_unsloth_416_a_template_that_never_ends_the_answer_is_refused():
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UnusableError, match="would never learn to stop"):
        Renderer(tokenizer_with(endless)).render(turns(ASKED, ANSWERED))


def test_no_chat_template_is_said_with_what_to_do():
    tokenizer = stock("gemma")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*base.chat_template"):
        Renderer(tokenizer).render(turns(ASKED, ANSWERED))


MARKED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_trl_5988_marks_that_stop_short_of_the_end_of_turn_are_moved_past_it():
    assert texts_with_loss(Renderer(tokenizer_with(MARKED)), turns("A?", "One.", "B?", "Two.")) == [
        "One.<|im_end|>",
        "Two.<|im_end|>",
    ]


def test_megatron_bridge_3359_marks_that_mark_nothing_are_not_taken_for_everything():
    unmarked = MARKED.replace(
        "{% generation %}{{ m.content }}{% endgeneration %}", "{% generation %}{% endgeneration %}{{ m.content }}"
    )
    assert texts_with_loss(Renderer(tokenizer_with(unmarked)), turns("A?", "One.")) == ["One.<|im_end|>"]


def test_learn_last_and_all():
    renderer = Renderer(stock("qwen2_5"))
    example = turns("A?", "One.", "B?", "Two.")
    assert texts_with_loss(renderer, example, "last") == ["Two.<|im_end|>"]
    (said,) = texts_with_loss(renderer, example, "all")
    assert said.startswith("<|im_start|>system")
    assert said.endswith("Two.<|im_end|>")


def test_a_template_that_writes_the_date_gives_the_same_tokens_tomorrow():
    text = Renderer(stock("llama3_2")).render(turns(ASKED, ANSWERED))[0].text
    assert "Today Date: 01 Jan 2025" in text


def test_raw_text_is_read_as_text_and_ends_as_a_document():
    renderer = Renderer(stock("llama3"))
    text = "HTML knows <|eot_id|> as little as <s>."
    ((ids, loss_mask),) = renderer.tokenize_many(renderer.render(Example(Source("a.txt", 1), text=text)))
    assert renderer.tokenizer.decode(ids[:-1]) == text
    assert ids[-1] == renderer.tokenizer.eos_token_id
    assert (ids == renderer.tokenizer.eos_token_id).sum() == 1
    assert loss_mask.all()


def test_openai_turns_of_weight_0_are_read_and_not_learnt_and_nothing_behind_the_last_learnt_one_is_kept():
    rows = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "First.", "weight": 0}]
    rows += [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "Second.", "weight": 1}]
    rows += [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "Third.", "train": False}]
    renderer = Renderer(stock("qwen2_5"))
    example = Example(Source("rows.jsonl", 1), messages=tuple(turns_of(rows, "messages")))
    (said,) = texts_with_loss(renderer, example)
    assert said.strip() == "Second.<|im_end|>"
    (rendering,) = renderer.render(example)
    assert "First." in rendering.text
    assert "c?" not in rendering.text
    with pytest.raises(UnusableError, match="none of its answers is to be learnt"):
        renderer.render(example, learn="last")
    with pytest.raises(NotUnderstoodError, match=r"the weight of turn 1 of messages is a number \(0.5\), not 0 or 1"):
        turns_of([{"role": "assistant", "content": "x", "weight": 0.5}], "messages")


SAID = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["qwen2_5", "llama3", "gemma3", "phi3", "qwen3"]), asked=SAID, answered=SAID)
def test_whatever_is_said_the_prompt_is_a_prefix_and_the_rest_is_learnt_to_its_end(name, asked, answered):
    renderer = Renderer(RENDERERS.setdefault(name, stock(name)))
    try:
        (rendering,) = renderer.render(turns(asked, answered))
    except UnusableError:
        return  # a template may refuse or drop what it takes for its own marks, never in silence
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    prompt = renderer.tokenizer(renderer.prompt(turns(asked).messages), add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)].tolist() == prompt
    assert not loss_mask[: len(prompt)].any()
    assert loss_mask[len(prompt)]
    assert fault(renderer, rendering, (ids, loss_mask)) is None


RENDERERS: dict = {}


def test_a_token_that_would_hold_the_prompts_end_and_the_answers_beginning_is_cut():
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
