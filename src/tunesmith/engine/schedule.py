"""The learning rate of each step."""

import math

from tunesmith.config.train import Train


def learning_rate(train: Train, peak: float, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 1) of `total_steps`.

    Warm-up: peak · step / warmup_steps, with warmup_steps = ⌈warmup_ratio · total_steps⌉. Then, with t going from 0
    to 1 over the rest and f = min_lr_ratio: cosine peak · (f + (1 − f) · (1 + cos πt) / 2)
    (Loshchilov & Hutter 2017, eq. 5), linear peak · (1 − (1 − f) · t), or constant, as schedule-free requires.
    """
    warmup_steps = math.ceil(train.warmup_ratio * total_steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if train.schedule == "constant" or train.optimizer == "schedule_free":
        return peak
    t = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    remaining = (1 + math.cos(math.pi * t)) / 2 if train.schedule == "cosine" else 1 - t
    final = train.min_lr_ratio
    return peak * (final + (1 - final) * remaining)
