"""What preference_speed.py trains on: pairs of answers, whose steps are the same for every trainer, and an adapter.

    python benchmarks/preference_work.py --pairs PAIRS.json --name "DPO demo" --model reference --out WORK

writes

    WORK/model/        the reference model of train_speed.py, or a link to the model that is given
    WORK/rows.jsonl    the pairs in training order, as chats
    WORK/texts.jsonl   the same as texts that the chat template has rendered: prompt, chosen, rejected
    WORK/plan.json     tokens of each row, and the rows of each step
    WORK/adapter/      a new LoRA adapter, from which several trainers can start

A step has a fixed number of rows k, since TRL accumulates a fixed number. Tunesmith fills steps of 2,048 tokens. Both
are the same for rows of more than 2,048 / (k + 1) tokens and at most 2,048 / k, a prompt counted once: k such rows fit,
and one more does not. k is the one with the most rows. Needs Tunesmith.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from peers.measured import ALPHA, RANK
from peft import LoraConfig, get_peft_model
from reference_work import make_model, messages_of, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable

TOKENS_PER_STEP = 2_048
MAX_LENGTH = 1_024  # tokens of a prompt and one answer: the reference model's positions
MOST_ROWS = 16  # of a step
SEED = 0
ROLES = {"human": "user", "gpt": "assistant"}

Pair = dict[str, Any]


def pairs_of(rows: list[dict[str, Any]]) -> list[Pair]:
    """Pairs as chats. Rows of questions and answers become pairs with the next row's answer as the worse one."""
    if "chosen" in rows[0]:
        return [
            {
                "prompt": [turn(each) for each in row["conversations"]],
                "chosen": [turn(row["chosen"])],
                "rejected": [turn(row["rejected"])],
            }
            for row in rows
        ]
    chats = [messages_of(row) for row in rows]
    return [
        {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": other[-1:]}
        for chat, other in zip(chats, [*chats[1:], chats[0]], strict=True)
        if chat[-1] != other[-1]
    ]


def turn(message: dict[str, str]) -> dict[str, str]:
    """A message of ShareGPT's form in OpenAI's."""
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines()))
    return rows


def table_of(model: Path, file: Path, objective: str) -> TokenTable:
    data = {"train": str(file), "held_out": 0.0, "max_length": 1_000_000, "cache": False}
    recipe = Recipe.model_validate({"base": str(model), "data": data, "objective": objective})
    return prepare(recipe, AutoTokenizer.from_pretrained(model)).train


def texts_of(table: TokenTable, row: int, tokenizer: Any) -> tuple[dict[str, str], list[int]] | None:
    """A row's texts and the tokens of each, if the texts give the same tokens again; an answer without what the
    template writes after its end."""
    assert table.completions is not None
    ids, mask = table[row]
    (shared, *own), _ = table.completions.of(row)
    parts, at = [ids[:shared]], shared
    for count in own:
        parts.append(ids[at : at + count][: int(mask[at : at + count].nonzero()[0][-1]) + 1])
        at += count
    prompt, chosen, rejected = (tokenizer.decode(part) for part in parts)
    for answer, part in ((chosen, parts[1]), (rejected, parts[2])):
        if tokenizer(prompt + answer)["input_ids"] != [*parts[0].tolist(), *part.tolist()]:
            return None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}, [len(part) for part in parts]


def rows_per_step(lengths: list[int]) -> tuple[int, list[int]]:
    """The number of rows of a step, and the indices of the rows that are so long that just so many fit.

    Args:
        lengths: of all rows, in tokens.
    """
    fits = {
        count: [
            index for index, length in enumerate(lengths)
            if length * (count + 1) > TOKENS_PER_STEP and length * count <= TOKENS_PER_STEP
        ]
        for count in range(2, MOST_ROWS + 1)
    }  # fmt: skip
    most = max(fits, key=lambda count: len(fits[count]))
    return most, fits[most]


def write_work(pairs: list[Pair], name: str, model: Path, out: Path) -> None:
    """Select and order the pairs, and write the files."""
    random.Random(SEED).shuffle(pairs)
    rows = out / "rows.jsonl"
    rows.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    table, tokenizer = table_of(model, rows, "dpo"), AutoTokenizer.from_pretrained(model)
    sources = [table.source(row).row - 1 for row in range(len(table))]
    found = [texts_of(table, row, tokenizer) for row in range(len(table))]
    good = [
        row for row, texts in enumerate(found) if texts is not None and texts[1][0] + max(texts[1][1:]) <= MAX_LENGTH
    ]
    count, chosen = rows_per_step([int(table.lengths[row]) for row in good])
    order = [good[index] for index in chosen]
    order = order[: len(order) - len(order) % count]
    texts, parts = zip(*(each for row in order if (each := found[row]) is not None), strict=True)
    for file, contents in (("rows.jsonl", [pairs[sources[row]] for row in order]), ("texts.jsonl", texts)):
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in contents)
        (out / file).write_text("".join(lines), encoding="utf-8")
    plan = {
        "data_set": name,
        "rows": len(order),
        "rows_in_the_file": len(pairs),
        "parts": parts,
        "tokens": [int(table.lengths[row]) for row in order],
        "loss_tokens": [1] * len(order),
        "rows_per_step": count,
        "steps": [list(range(start, start + count)) for start in range(0, len(order), count)],
    }
    (out / "plan.json").write_text(json.dumps(plan))
    means = (sum(part[number] for part in parts) / len(parts) for number in range(3))
    print(
        f"{len(order)} pairs of {name}, {count} per step; tokens of prompt, chosen and rejected on average: "
        + ", ".join(f"{mean:.0f}" for mean in means)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="JSON or JSONL: pairs, or questions with answers")
    parser.add_argument("--name", required=True, help="the data set's name in the tables")
    parser.add_argument("--model", required=True, help="`reference`, or a Hugging Face model directory")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = pairs_of(read(arguments.pairs))
    model = arguments.out / "model"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.model == "reference":
        train_tokenizer([[*pair["prompt"], *pair["chosen"], *pair["rejected"]] for pair in pairs], model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        make_model(model, tokenizer.eos_token_id, tokenizer.pad_token_id)
    elif not model.exists():
        model.symlink_to(Path(arguments.model).resolve())
    torch.manual_seed(SEED)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(arguments.out / "adapter")
    write_work(pairs, arguments.name, model, arguments.out)


if __name__ == "__main__":
    main()
