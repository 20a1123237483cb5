"""Trains the embedded base model's tokenizer: byte-level BPE, 8,192 ids, ChatML.

    python tokenizer.py --corpus /data/corpus --out /data/tokenizer

Every byte has an id, so decoding returns any text exactly. Each digit is a token, no space is put before a text
and nothing is added around it. `<|endoftext|>` goes between documents; `<|im_end|>` ends a turn and is the end
of sequence; `<|pad|>` pads. The chat template marks the assistant's words and their `<|im_end|>` with
`{% generation %}`, so that `apply_chat_template(return_assistant_tokens_mask=True)` returns the loss mask.

Needs tokenizers and transformers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

VOCABULARY = 8192
CONTEXT = 1024
END_OF_DOCUMENT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = [END_OF_DOCUMENT, TURN_START, TURN_END, PAD]

SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)\b|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What BPE may not merge across: GPT-4's pattern with single digits."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception("The role is " + message['role'] + "; this template knows system, user and assistant.") }}
{%- endif %}
{%- if message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

ODD_TEXT = "Ünï-côdé 漢字 😀👩‍👩‍👧 \x00\x7f\u200b \t\r\n  3.14159 don't `x_y`\n\n<a> مرحبا é e\u0301"


def texts_of(path: Path, limit: int | None = None) -> Iterator[str]:
    """The documents' texts, up to `limit` characters in all."""
    seen = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            yield text
            seen += len(text)
            if limit is not None and seen > limit:
                return


def trained(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE over the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        max_token_length=20,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def for_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it, with its chat template."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[END_OF_DOCUMENT, TURN_START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def check(directory: Path) -> None:
    """Load the saved tokenizer and check its documented properties."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    expect(len(tokenizer) == VOCABULARY, f"{len(tokenizer)} ids, not {VOCABULARY}")
    expect(tokenizer.bos_token is None and tokenizer.eos_token == TURN_END, "bos or eos differ")
    expect(tokenizer.pad_token == PAD and tokenizer.model_max_length == CONTEXT, "pad or length differ")
    every_character = "".join(map(chr, [*range(0x3000), *range(0xE000, 0xE100)])) + ODD_TEXT
    for text in (ODD_TEXT, every_character, " leading", "", "trailing \n\n"):
        ids = tokenizer(text)["input_ids"]
        expect(tokenizer.decode(ids) == text, f"does not come back: {text[:40]!r}")
    expect(len(tokenizer("2024")["input_ids"]) == 4, "digits are joined")
    for special in SPECIALS:
        expect(len(tokenizer(special)["input_ids"]) == 1, f"{special} is not one id")
    check_template(tokenizer)


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """The mask covers each answer and its end only; the prompt is a prefix; other roles are refused."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say yes."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": "Yes, again."},
    ]
    shown = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True)
    loss_ids = [i for i, m in zip(shown["input_ids"], shown["assistant_masks"], strict=True) if m]
    expect(
        tokenizer.decode(loss_ids) == "Yes.<|im_end|>Yes, again.<|im_end|>",
        f"the loss is on {tokenizer.decode(loss_ids)!r}",
    )
    conversation = tokenizer.apply_chat_template(messages[:3], tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    expect(conversation == prompt + "Yes.<|im_end|>\n", "the prompt is not a prefix of the conversation")
    expect(
        prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
        f"prompt is {prompt!r}",
    )
    try:
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
    except Exception as refusal:  # from jinja2 or transformers, depending on the version
        expect("system, user and assistant" in str(refusal), str(refusal))
    else:
        expect(False, "an unknown role was accepted")


def expect(condition: bool, problem: str) -> None:
    """Exit with the problem if the condition is false."""
    if not condition:
        raise SystemExit(f"tokenizer: {problem}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory with train.jsonl and held_out.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="directory for the tokenizer")
    parser.add_argument("--characters", type=int, default=60_000_000, help="how much text to train on (default: 60 M)")
    options = parser.parse_args()

    print("training", file=sys.stderr, flush=True)
    tokenizer = trained(texts_of(options.corpus / "train.jsonl", options.characters))
    partial = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for_transformers(tokenizer).save_pretrained(partial)
    check(partial)
    shutil.rmtree(options.out, ignore_errors=True)
    partial.rename(options.out)

    held_out = list(texts_of(options.corpus / "held_out.jsonl"))
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(held_out))
    size = sum(len(t.encode()) for t in held_out)
    print(f"{size / tokens:.3f} bytes a token on the {size:,} bytes held out", file=sys.stderr)


if __name__ == "__main__":
    main()
