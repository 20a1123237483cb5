"""TRL's GRPOTrainer, used as in its documentation, with transformers' own generation.

Prompts are texts that the chat template has rendered, as for the other objectives. A step samples `GRPO_GROUP` answers
of at most `GRPO_TOKENS` tokens to each of `GRPO_PROMPTS` prompts, scores them by their length, and takes one update on
them, in one padded batch or accumulated over the groups. The rest is its defaults: `loss_type="dapo"`, `beta=0.0`. The
whole step is timed: sampling, rewards, and learning. Tokens are those of the prompts, once, and of the answers.
"""

import json
from typing import Any

import torch
from datasets import Dataset
from measured import (
    ALPHA,
    GRPO_GROUP,
    GRPO_PROMPTS,
    GRPO_TOKENS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    RANK,
    SEED,
    Report,
    arguments,
)  # fmt: skip
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_preference import WORDS
from trl_sft import Watch

ANSWERS = GRPO_PROMPTS * GRPO_GROUP
BATCHES = {
    "batch": ("a step's answers in one padded batch", {"per_device_train_batch_size": ANSWERS}),
    "groups": (
        "a prompt's answers at a time, accumulated",
        {"per_device_train_batch_size": GRPO_GROUP, "gradient_accumulation_steps": GRPO_PROMPTS},
    ),
}
SETTINGS = [f"grpo-{batch}-{precision}" for batch in BATCHES for precision in WORDS]


class WatchGRPO(Watch):
    """Counts the tokens that were sampled."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        first = (state.global_step - 1) * GRPO_PROMPTS
        prompts = sum(count for count, _ in self.counts[first : first + GRPO_PROMPTS])
        answers = round(logs["completions/mean_length"] * ANSWERS)
        self.report.step(logs["loss"], counts=(prompts + answers, answers))


def short(completions: list[str], **columns: Any) -> list[float]:
    """The shorter, the better."""
    return [-len(each) / 1000 for each in completions]


def main() -> None:
    options = arguments(__doc__.split("\n")[0], SETTINGS)
    plan = json.loads(options.plan.read_text())
    _, batch, precision = options.setting.split("-")
    words, setting = BATCHES[batch]
    watch = WatchGRPO(Report(plan, f"{words}, {WORDS[precision]}"))
    watch.counts = [(parts[0], 0) for parts in plan["parts"]]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with options.rows.with_name("texts.jsonl").open(encoding="utf-8") as file:
        rows = [{"prompt": json.loads(line)["prompt"]} for line in file][: options.steps * GRPO_PROMPTS]
    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if precision == "pure" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    config = GRPOConfig(
        output_dir=str(options.out.with_suffix("")),
        max_steps=options.steps,
        num_generations=GRPO_GROUP,
        max_completion_length=GRPO_TOKENS,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        seed=SEED,
        bf16=precision == "autocast",
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        **setting,
    )
    more: dict[str, Any] = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    trainer = GRPOTrainer(base, short, args=config, peft_config=lora, callbacks=[watch], **more)
    if precision == "pure":
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    trainer.train()
    watch.report.write(options.out, ["torch", "transformers", "peft", "trl", "accelerate", "datasets"])


if __name__ == "__main__":
    main()
