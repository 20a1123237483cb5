"""Small reward models: a run that learned from pairs, and a sequence classifier as others store it."""

import json
from pathlib import Path

import torch
from bytewise import byte_tokenizer
from small_models import config_of, stored_base
from transformers import AutoModelForSequenceClassification

import tunesmith

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""With a line break after each turn, as in models that are published."""


def liked_run(directory: Path) -> Path:
    """A reward model that likes answers with `yes`, trained in that directory. Returns the run's directory."""
    base = stored_base(directory / "base")
    (base / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(8)]
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "base": {"path": str(base)},
        "data": {"train": [str(directory / "pairs.jsonl")], "held_out": 0},
        "objective": {"kind": "reward"},
        "method": {"kind": "full"},
        "train": {"steps": 8, "tokens_per_step": 128, "precision": "fp32", "learning_rate": 3e-3},
    }
    return tunesmith.train(recipe, directory / "run").directory


def classifier(directory: Path, labels: int, template: str | None = byte_tokenizer().chat_template) -> Path:
    """A small sequence classifier with random weights. Returns the directory."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = config_of("llama", len(tokenizer), num_labels=labels, pad_token_id=tokenizer.pad_token_id)
    config.initializer_range = 0.2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
