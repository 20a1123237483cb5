"""TRL's SFTTrainer, used as in its documentation.

All settings train on the assistant's tokens only (`assistant_only_loss=True`, by the template's own markers), read the
rows in the file's order (`train_sampling_strategy="sequential"`) and have a constant learning rate; other options are
below. TRL computes its loss in chunks by default (`loss_type="nll"`; "chunked_nll" is an alias of it), and by default
holds the weights in fp32, computes in bf16 under autocast, and uses activation checkpointing.

Packing uses its own order of rows, so it gets only the rows of the benchmark's steps; all rows together are the same.
"""

import json
from typing import Any

import torch
from datasets import Dataset
from measured import ALPHA, LEARNING_RATE, MAX_GRAD_NORM, MAX_LENGTH, RANK, SEED, Report, arguments, read_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

FAST: dict[str, Any] = {"gradient_checkpointing": False}
BATCH = {"per_device_train_batch_size": "step", "gradient_accumulation_steps": 1}
ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": "step"}
TWO_PACKS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "packing": True}

SETTINGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    # name: (in words, SFTConfig, weights and adapter in bf16 instead of autocast)
    "defaults": ("its defaults: bf16 autocast, activation checkpointing, padded batch", BATCH, False),
    "packing": ("packing, bf16 autocast, no activation checkpointing", {**TWO_PACKS, **FAST}, False),
    "rows": (
        "one row at a time with accumulation, bf16 autocast, no activation checkpointing",
        {**ONE_ROW, **FAST},
        False,
    ),
    "rows-pure": (
        "one row at a time with accumulation, pure bf16, no activation checkpointing",
        {**ONE_ROW, **FAST},
        True,
    ),
    "packing-pure": ("packing, pure bf16, no activation checkpointing", {**TWO_PACKS, **FAST}, True),
    "batch": ("padded batch, bf16 autocast, no activation checkpointing", {**BATCH, **FAST}, False),
    "batch-pure": ("padded batch, pure bf16, no activation checkpointing", {**BATCH, **FAST}, True),
    "flat-pure": (
        "padding-free batch, pure bf16, no activation checkpointing",
        {**BATCH, **FAST, "padding_free": True, "max_length": None},
        True,
    ),
}


class Watch(TrainerCallback):
    """Reports where steps begin and end. TRL logs each step's loss after `on_step_end`."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.counts: list[tuple[int, int]] = []  # (tokens, loss tokens) of the trainer's rows, packed or not
        self.rows_per_step = 1
        self.packed = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.report.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        first = (state.global_step - 1) * self.rows_per_step
        rows = [row % len(self.counts) for row in range(first, first + self.rows_per_step)]
        if self.packed:
            counts = [self.counts[row] for row in rows]
            self.report.step(logs["loss"], counts=(sum(c[0] for c in counts), sum(c[1] for c in counts)))
        else:
            self.report.step(logs["loss"], rows=rows)


def main() -> None:
    options = arguments(__doc__.split("\n")[0], list(SETTINGS))
    plan = json.loads(options.plan.read_text())
    description, setting, pure_bf16 = SETTINGS[options.setting]
    watch = Watch(Report(plan, description))
    setting = {key: plan["rows_per_step"] if value == "step" else value for key, value in setting.items()}
    config = SFTConfig(
        output_dir=str(options.out.with_suffix("")),
        **{
            "max_steps": options.steps,
            "max_length": MAX_LENGTH,
            "assistant_only_loss": True,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": MAX_GRAD_NORM,
            "train_sampling_strategy": "sequential",
            "seed": SEED,
            "bf16": not pure_bf16,
            "logging_steps": 1,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            **setting,
        },
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [{"messages": messages} for messages in read_rows(options.rows)]
    if config.packing:
        rows = [rows[row] for step in plan["steps"][: options.steps] for row in step]
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = str(options.model)
    if pure_bf16:
        torch.manual_seed(SEED)
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
        model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if pure_bf16 else lora,
        callbacks=[watch],
    )
    prepared = trainer.train_dataset
    watch.counts = [
        (len(ids), sum(label != -100 for label in labels[1:]))
        for ids, labels in zip(prepared["input_ids"], prepared["labels"], strict=True)
    ]
    watch.packed = config.packing
    watch.rows_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if not config.packing:
        assert watch.counts == list(zip(plan["tokens"], plan["loss_tokens"], strict=True)), "TRL has other loss tokens"
    trainer.train()
    watch.report.write(options.out, ["torch", "transformers", "peft", "trl", "accelerate", "datasets"])


if __name__ == "__main__":
    main()
