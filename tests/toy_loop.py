"""The training loop around a model with one weight, whose steps can be computed by hand: y = w · x, squared errors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.config.train import Train
from tunesmith.data.batch import Batch
from tunesmith.data.example import Source
from tunesmith.data.pack import Batches
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.inference.held_out import held_out_evaluation
from tunesmith.objectives.objective import Objective
from tunesmith.run import Event, Events

CPU = torch.device("cpu")
EPS = 2.0**27
GRADIENT_DESCENT: dict[str, Any] = {"betas": (0.0, 0.999), "eps": EPS, "warmup_ratio": 0.0, "max_grad_norm": 1e9}
"""AdamW with such a large eps and no momentum is w ← w − rate / EPS · gradient, so that no factor is lost."""

TOKENS = 10
"""Tokens of each row."""

Point = tuple[float, float]


class Slope(nn.Module):
    """y = w · x."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))
        self.config = SimpleNamespace(_attn_implementation="eager")
        self.device = CPU


class SquaredErrors(Objective):
    """½ (w x − y)² of each row; on held-out rows, the scripted losses until the script ends.

    Attributes:
        script: losses of the evaluations to come.
        before: called before each loss with its number, from 1; the loss is multiplied by the result if it is not None.
        modes: for each evaluation, whether the model was in training mode.
    """

    def __init__(self, script: Sequence[float] = (), before: Any = None) -> None:
        self.script: Iterator[float] = iter(script)
        self.before = before
        self.calls = 0
        self.modes: list[bool] = []

    def loss(self, model: Any, batch: Batch) -> Tensor:
        self.calls += 1
        factor = self.before(self.calls) if self.before else None
        x, y = batch.labels.T
        loss = 0.5 * (model.weight * x - y).square().sum()
        return loss if factor is None else loss * factor

    def losses(self, model: Any, batch: Batch) -> Tensor:
        self.modes.append(model.training)
        x, y = batch.labels.T
        losses = 0.5 * (model.weight * x - y).square()
        scripted = next(self.script, None)
        return losses if scripted is None else torch.full_like(losses, scripted)


def table_of(points: Sequence[Point], lengths: Sequence[int] | None = None) -> TokenTable:
    """One row per point, of `TOKENS` tokens each; the target at the last token is (x, y)."""
    rows = []
    for number, point in enumerate(points):
        length = TOKENS if lengths is None else lengths[number]
        is_last = np.arange(length) == length - 1
        rows.append((np.arange(length, dtype=np.int32), is_last, Source("points.jsonl", number + 1), point))
    return TokenTable.build(rows)


def loop_over(
    directory: Path,
    points: Sequence[Point],
    *,
    rate: float = 0.1,
    objective: SquaredErrors | None = None,
    held_out: Sequence[Point] = (),
    batch: int = 1,
    step: int = 1,
    start: float = 0.0,
    steps: int = 4,
    **settings: Any,
) -> tuple[Loop, list[Event]]:
    """A loop of gradient descent, and the list that collects its events.

    Args:
        directory: for its checkpoints.
        points: the training rows, taken in order.
        rate: w ← w − rate · the mean gradient.
        objective: default: `SquaredErrors()`.
        held_out: rows that are evaluated.
        batch: rows per batch.
        step: rows per step.
        start: the initial w.
        steps: steps of the run.
        settings: fields of `train`.
    """
    train = Train(steps=steps, **{**GRADIENT_DESCENT, "schedule": "constant", **settings})
    model = Slope(start)
    losses = objective or SquaredErrors()
    events: list[Event] = []
    batches = Batches(
        table_of(points),
        tokens_per_step=step * TOKENS,
        tokens_per_batch=batch * TOKENS,
        pack=True,
        shuffle=False,
        seed=0,
    )
    loop = Loop(
        model=model,
        objective=losses,
        batches=batches,
        held_out=held_out_evaluation(model, losses, CausalLMHead(), table_of(held_out), range(len(held_out))),
        evaluate_every=train.evaluate_every or max(1, steps // 10),
        masters=MasterWeights(model.named_parameters(), train),
        train=train,
        total_steps=steps,
        peak_learning_rate=rate * EPS,
        tokens_per_batch=batch * TOKENS,
        directory=directory,
        events=Events(events.append),
        device=CPU,
    )
    return loop, events


def weight_of(loop: Loop) -> float:
    """w."""
    return loop.model.weight.item()


def descent(points: Sequence[Sequence[Point]], rate: float, start: float = 0.0) -> list[float]:
    """w after each step over the given rows, in float64: w ← w − rate · mean of x (w x − y)."""
    weights, w = [], start
    for rows in points:
        w -= rate * sum(x * (w * x - y) for x, y in rows) / len(rows)
        weights.append(w)
    return weights


def named(events: Sequence[Event], *kinds: str) -> list[Event]:
    """The events of these kinds."""
    return [event for event in events if event["event"] in kinds]
