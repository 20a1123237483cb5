"""How much each input of a linear layer matters: the mean of its squares over a run's own rows.

A quantized weight's error is multiplied by its input. llama.cpp weights the errors by the mean square of the inputs
when it chooses scales (its tool is called `imatrix`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tunesmith.data.prepare import prepare
from tunesmith.errors import UserError
from tunesmith.exporting.gguf_family import Layout
from tunesmith.exporting.subject import Subject
from tunesmith.run import Events


@torch.no_grad()
def importance(subject: Subject, layout: Layout, rows: int, events: Events) -> dict[str, NDArray[np.float32]]:
    """The mean squares over the first training rows of the model's run.

    Args:
        subject: whose run has rows.
        layout: gives the names.
        rows: how many to read at most.
        events: receives `progress`, in rows.

    Returns:
        By the name of a matrix in GGUF: (columns,).

    Raises:
        UserError: the model has no run, or its rows cannot be read.
    """
    if subject.recipe is None:
        raise UserError(f"--importance-rows needs the rows of a run, and {subject.name} is none. Give a run.")
    table = prepare(subject.recipe, subject.tokenizer).train
    count = min(rows, len(table))
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, inputs: Any) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, torch.zeros(flat.shape[1])) + flat.square().sum(0)
            tokens[name] = tokens.get(name, 0) + len(flat)

        return add

    named = [(layout.name(name), module) for name, module in subject.weights.linears()]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in named if name is not None]
    try:
        with subject.weights.computing() as model:
            for row in range(count):
                model(input_ids=torch.as_tensor(np.asarray(table[row][0], np.int64))[None])
                events.emit("progress", what="importance, rows", done=row + 1, total=count)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / tokens[name]).numpy() for name, total in sums.items()}
