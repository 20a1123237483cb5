"""TensorBoard reads the files that a run wrote for it."""

from pathlib import Path

import pytest

from tunesmith.run import Run


def test_tensorboard_reads_the_losses(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [event["loss"] for event in Run.open(run).events() if event["event"] == "step"]
    assert [scalar.value for scalar in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert [scalar.step for scalar in events.Scalars("held_out/loss")][-1] == 12
