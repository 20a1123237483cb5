"""A run's curves for TensorBoard (the extra `tunesmith[tensorboard]`)."""

import importlib.util
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.run import Event

SCALARS = {
    "step": (
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "loss_tokens",
        "seconds",
        "reward",
        "kl",
        "entropy",
        "completion_tokens",
        "dead_groups",
    ),
    "evaluation": ("loss", "perplexity", "reward"),
}


class TensorBoard:
    """A subscriber that writes scalars of steps (`train/…`) and evaluations (`held_out/…`) into a directory.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError('train.tensorboard needs tensorboard: pip install "tunesmith[tensorboard]"')
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def __call__(self, event: Event) -> None:
        group = {"step": "train", "evaluation": "held_out"}.get(event["event"])
        if group is not None:
            for name in (name for name in SCALARS[event["event"]] if name in event):
                self._writer.add_scalar(f"{group}/{name}", float(event[name]), event["step"])
        elif event["event"] == "end":
            self._writer.close()
