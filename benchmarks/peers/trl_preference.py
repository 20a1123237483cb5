"""TRL's DPOTrainer and RewardTrainer, used as in their documentation.

Rows are texts that the chat template has rendered, so that the tokens are those of Tunesmith to the last one; a check
compares their numbers. Rows are read in the file's order and the learning rate is constant. Activation checkpointing is
off, which is faster. DPOTrainer computes its log-probabilities in chunks; with `precompute_ref_log_probs` it computes
the reference before the first step. `padding_free` does nothing in TRL 1.16, which warns that it is unavailable.
"""

import json
import time
from typing import Any

import torch
from datasets import Dataset
from measured import ALPHA, BETA, LEARNING_RATE, MAX_GRAD_NORM, RANK, SEED, Report, arguments
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl_sft import Watch

BATCH = {"per_device_train_batch_size": "step", "gradient_accumulation_steps": 1}
ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": "step"}
BEFORE = {"precompute_ref_log_probs": True}

PRECISIONS = ("autocast", "pure", "fp32")
BATCHES = {"batch": ("a step's pairs in one padded batch", BATCH), "rows": ("one pair at a time, accumulated", ONE_ROW)}
REFERENCES = {"before": ("the reference computed before training", BEFORE), "with": ("the reference in each step", {})}
WORDS = {
    "autocast": "bf16 autocast over weights in fp32",
    "pure": "weights and adapter in bf16",
    "fp32": "fp32",
}

SETTINGS = [f"dpo-{batch}-{reference}-{precision}" for batch in BATCHES for reference in REFERENCES
            for precision in PRECISIONS]  # fmt: skip
SETTINGS += [f"reward-{batch}-{precision}" for batch in BATCHES for precision in PRECISIONS]


class TimedDPO(DPOTrainer):
    """Notes how long the reference takes before training: (pairs, seconds) of each batch."""

    before: list[tuple[int, float]]

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        started = time.perf_counter()
        values = super().compute_ref_log_probs(model, inputs)
        if not hasattr(self, "before"):
            self.before = []
        self.before.append((len(values[0]), time.perf_counter() - started))
        return values


def main() -> None:
    options = arguments(__doc__.split("\n")[0], SETTINGS)
    plan = json.loads(options.plan.read_text())
    objective, batch, *reference, precision = options.setting.split("-")
    rows_per_step = plan["rows_per_step"]
    parts = [BATCHES[batch], *(REFERENCES[each] for each in reference)]
    description = ", ".join([*(words for words, _ in parts), WORDS[precision]])
    setting = {key: rows_per_step if value == "step" else value for _, part in parts for key, value in part.items()}
    watch = Watch(Report(plan, description))
    watch.counts, watch.rows_per_step = list(zip(plan["tokens"], plan["loss_tokens"], strict=True)), rows_per_step
    common = {
        "output_dir": str(options.out.with_suffix("")),
        "max_steps": options.steps,
        "max_length": None,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "train_sampling_strategy": "sequential",
        "seed": SEED,
        "bf16": precision == "autocast",
        "activation_checkpointing": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        **setting,
    }
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with options.rows.with_name("texts.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: options.steps * rows_per_step]
    task, kind = {
        "dpo": ("CAUSAL_LM", AutoModelForCausalLM), "reward": ("SEQ_CLS", AutoModelForSequenceClassification),
    }[objective]  # fmt: skip
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type=task)
    torch.manual_seed(SEED)
    outputs = {"num_labels": 1} if objective == "reward" else {}
    dtype = torch.bfloat16 if precision == "pure" else torch.float32
    base = kind.from_pretrained(options.model, dtype=dtype, **outputs)
    base.config.pad_token_id = tokenizer.pad_token_id
    more: dict[str, Any] = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    more |= {"model": base, "peft_config": lora, "callbacks": [watch]}
    trainer: Any
    if objective == "dpo":
        trainer = TimedDPO(args=DPOConfig(beta=BETA, **common), **more)
    else:
        trainer = RewardTrainer(args=RewardConfig(**common), **more)
    if precision == "pure":
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if options.adapter is not None:
        set_peft_model_state_dict(trainer.model, load_file(options.adapter / "adapter_model.safetensors"))
    check(trainer.train_dataset, plan, objective)
    trainer.train()
    watch.report.before = getattr(trainer, "before", [])[1:]  # the first one also warms up
    watch.report.write(options.out, ["torch", "transformers", "peft", "trl", "accelerate", "datasets"])


def check(prepared: Any, plan: dict[str, Any], objective: str) -> None:
    """Compare the numbers of tokens with the plan's."""
    for row, (shared, *own) in zip(prepared, plan["parts"], strict=False):
        before = len(row["prompt_ids"]) if objective == "dpo" else 0
        found = [before + len(row["chosen_ids"]), before + len(row["rejected_ids"])]
        assert found == [shared + count for count in own], f"TRL has {found} tokens, the plan {shared} + {own}"


if __name__ == "__main__":
    main()
