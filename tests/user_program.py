"""What a user writes, for mypy --strict: each annotation is what the API promises. It is checked and not run."""

from pathlib import Path
from typing import Any

import tunesmith as t


def train() -> Path:
    run: t.Run = t.train("r.yaml", run="runs/x", overrides=["train.steps=3"])
    result: dict[str, Any] = t.evaluate(run.directory, rows=4)
    print(result["models"]["tuned"]["loss"]["value"])
    return run.directory


def use(name: str) -> float:
    model: t.Model = t.load(name)
    answers: list[t.Generation] = model.generate(["What is a list?"], max_new_tokens=40, n=2)
    texts: list[str] = [answer.text for answer in answers]
    reply: str = model.chat([{"role": "user", "content": texts[0]}], temperature=0.0)
    labels: list[list[t.Prediction]] = t.classify(name, [reply])
    scores: list[t.Score] = model.score(["What is a list?"], texts[:1])
    print(labels[0][0].label, t.embed(name, "a text").shape)
    return scores[0].total


def step() -> dict[str, float]:
    trainer = t.Trainer("r.yaml", run="runs/y")
    for batches in trainer:
        for rows in batches:
            loss: float = trainer.forward_backward(rows)
            print(loss)
        trainer.optim_step()
    figures = trainer.step()
    trainer.save()
    return figures
