"""transformers' Trainer on a classifier, as in its own example, and with its best settings here.

Settings:
    defaults   fp32, 8 rows per batch, padded to the longest
    bf16       bf16 autocast, 128 rows per batch, grouped by length
"""

import csv
import json
import tempfile
from typing import Any

import torch
from measured import LEARNING_RATE, SEED, Report, arguments
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

DESCRIPTIONS = {
    "defaults": "its defaults: fp32, 8 rows per batch, padded to the longest",
    "bf16": "bf16 autocast, 128 rows per batch, grouped by length",
}


class Steps(TrainerCallback):
    """Reports the end of each step; the collator counts the rows' non-padding tokens."""

    def __init__(self, report: Report, batches: list[int]) -> None:
        self.report = report
        self.batches = batches

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.report.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        tokens = self.batches[len(self.report.steps)]
        self.report.step(0.0, counts=(tokens, tokens))


def main() -> None:
    options = arguments(__doc__.split("\n")[0], list(DESCRIPTIONS))
    report = Report({}, DESCRIPTIONS[options.setting])
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with options.rows.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["category"] for row in rows})
    texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)["input_ids"]
    learn = [{"input_ids": ids, "labels": labels.index(row["category"])} for ids, row in zip(texts, rows, strict=True)]
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(labels))
    pad = DataCollatorWithPadding(tokenizer)
    batches: list[int] = []

    def collate(members: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batches.append(sum(len(member["input_ids"]) for member in members))
        return pad(members)

    better: dict[str, Any] = {}
    if options.setting == "bf16":
        better = {"bf16": True, "per_device_train_batch_size": 128, "train_sampling_strategy": "group_by_length"}
    settings = TrainingArguments(
        tempfile.mkdtemp(), max_steps=options.steps, learning_rate=LEARNING_RATE, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=SEED, **better,
    )  # fmt: skip
    trainer = Trainer(model, settings, collate, learn, callbacks=[Steps(report, batches)])
    trainer.train()
    report.write(options.out, ["torch", "transformers", "accelerate"])
    options.out.write_text(json.dumps(json.loads(options.out.read_text()), indent=1))


if __name__ == "__main__":
    main()
