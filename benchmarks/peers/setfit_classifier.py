"""SetFit as in its own examples, on rows in a file: prints one line of JSON. Runs in its own environment.

python setfit_classifier.py ROWS.json BASE SEED STEPS
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
from datasets import Dataset, disable_progress_bars
from setfit import SetFitModel, Trainer, TrainingArguments


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    base, seed, steps = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    disable_progress_bars()
    torch.set_num_threads(1)
    model = SetFitModel.from_pretrained(base, labels=sorted({row["label"] for row in rows["learn"]}))
    pairs = 2 * 20 * len(rows["learn"])  # num_iterations: 20, as in the paper
    arguments = TrainingArguments(
        output_dir=str(Path(sys.argv[1]).parent / "setfit"),
        batch_size=16,
        num_iterations=20,
        max_steps=min(steps, -(-pairs // 16)),
        seed=seed,
        report_to="none",
        save_strategy="no",
        show_progress_bar=False,
    )
    learn = Dataset.from_list(rows["learn"])
    trainer = Trainer(model=model, args=arguments, train_dataset=learn)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    predictions = model.predict([row["text"] for row in rows["test"]])
    right = [bool(label == row["label"]) for label, row in zip(predictions, rows["test"], strict=True)]
    print(json.dumps({"accuracy": sum(right) / len(right), "seconds": seconds, "steps": arguments.max_steps}))


if __name__ == "__main__":
    main()
