"""TensorBoard reads the files that a run wrote for it."""

from pathlib import Path

import pytest

from tunesmith.engine.tensorboard import TensorBoard
from tunesmith.run import Run


def test_tensorboard_reads_the_losses(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [event["loss"] for event in Run.open(run).events() if event["event"] == "step"]
    assert [scalar.value for scalar in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert [scalar.step for scalar in events.Scalars("held_out/loss")][-1] == 12


def test_everything_is_on_disk_when_the_run_has_ended(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board({"event": "step", "step": 3, "loss": 0.5})
    board({"event": "end", "reason": "done"})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")] == [(3, 0.5)]
