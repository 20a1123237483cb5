"""The reference task: a 125 M Llama of random weights, a tokenizer, 2,000 rows, and the rows of each step.

    python benchmarks/reference_work.py --rows ROWS.jsonl --name "GSM8K train" --out WORK

writes

    WORK/model/        config, bf16 safetensors, a byte-level BPE tokenizer with a chat template
    WORK/rows.jsonl    the rows in training order: {"messages": [...]}
    WORK/plan.json     tokens and loss tokens of each row, and the rows of each step

Rows may have `messages`, or question/answer, prompt/completion or instruction/output. They are shuffled once (seed 0),
so that every trainer can read them in the file's order. Rows over 1,024 tokens are left out and counted. Needs torch,
transformers and tokenizers.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 32_000
MAX_LENGTH = 1_024  # tokens
TOKENS_PER_STEP = 2_048
ROWS = 2_000
SEED = 0

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] ~ '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] ~ '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""There is nothing between a role's marker and its text, so that prompt and answer tokenized separately (as LitGPT
does) give the same tokens as tokenized together."""

PAIRS = [("question", "answer"), ("prompt", "completion"), ("instruction", "output")]


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """A row of any of the known formats as chat messages; raises ValueError for others."""
    if "messages" in row:
        return [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    for question, answer in PAIRS:
        if question in row and answer in row:
            return [{"role": "user", "content": row[question]}, {"role": "assistant", "content": row[answer]}]
    raise ValueError(f"a row with the columns {', '.join(row)} is none of: messages, {PAIRS}")


def train_tokenizer(conversations: list[list[dict[str, str]]], directory: Path) -> None:
    """Byte-level BPE (Sennrich et al. 2016) on the rows and on the text of Python's own help topics.

    With little text there are fewer merges than the model's vocabulary has entries; the rest stay unused.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def text() -> Iterator[str]:
        yield from (message["content"] for messages in conversations for message in messages)
        yield from (topics[name] for name in sorted(topics))

    tokenizer.train_from_iterator(text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=MAX_LENGTH
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def make_model(directory: Path, end: int, pad: int) -> None:
    """Hidden 768, MLP 2,048, 12 layers, 12 heads, 4 key-value heads, 32,000 tokens, untied: 124.7 M."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def count(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> tuple[int, int]:
    """Tokens and loss tokens of a rendered conversation."""
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return len(encoded["input_ids"]), sum(encoded["assistant_masks"])


def write_rows(conversations: list[list[dict[str, str]]], model: Path, out: Path, name: str) -> None:
    """Select the rows, write them in order, and write the plan of steps.

    A step has a fixed number of rows, the one whose mean is nearest to 2,048 tokens: TRL and LitGPT accumulate a fixed
    number of rows, so all trainers can follow only such a plan.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    order = list(range(len(conversations)))
    random.Random(SEED).shuffle(order)
    chosen: list[list[dict[str, str]]] = []
    counts: list[tuple[int, int]] = []
    too_long = 0
    for index in order:
        if len(chosen) == ROWS:
            break
        tokens, loss_tokens = count(tokenizer, conversations[index])
        if tokens > MAX_LENGTH:
            too_long += 1
            continue
        chosen.append(conversations[index])
        counts.append((tokens, loss_tokens))
    rows_per_step = max(1, round(TOKENS_PER_STEP * len(counts) / sum(tokens for tokens, _ in counts)))
    starts = range(0, len(chosen) - rows_per_step + 1, rows_per_step)
    plan: dict[str, Any] = {
        "data_set": name,
        "rows": len(chosen),
        "rows_in_the_file": len(conversations),
        "left_out_as_over_long": too_long,
        "max_length": MAX_LENGTH,
        "tokens": [tokens for tokens, _ in counts],
        "loss_tokens": [loss_tokens for _, loss_tokens in counts],
        "rows_per_step": rows_per_step,
        "steps": [list(range(start, start + rows_per_step)) for start in starts],
    }
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for messages in chosen:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    (out / "plan.json").write_text(json.dumps(plan))
    print(
        f"{len(chosen):,} rows of {name}, {sum(plan['tokens']):,} tokens, "
        f"{sum(plan['loss_tokens']):,} loss tokens; "
        f"{rows_per_step} rows per step; {too_long} over {MAX_LENGTH:,} tokens left out; "
        f"{len(tokenizer):,} tokens in the tokenizer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="JSONL")
    parser.add_argument("--name", required=True, help="the data set's name in the tables")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.rows.open(encoding="utf-8") as file:
        conversations = [messages_of(json.loads(line)) for line in file if line.strip()]
    model = arguments.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    train_tokenizer(conversations, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    make_model(model, tokenizer.eos_token_id, tokenizer.pad_token_id)
    write_rows(conversations, model, arguments.out, arguments.name)


if __name__ == "__main__":
    main()
