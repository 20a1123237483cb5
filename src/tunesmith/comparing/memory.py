"""The memory that one request of a way takes, by the planner's figures."""

from pathlib import Path

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.planner.device import device_named
from tunesmith.planner.generation import plan_generation
from tunesmith.subjects.subject import Subject


def memory_of(subject: Subject, tokens: int, index: Path | None) -> int | None:
    """Bytes of the weights, of a step, of keys and values of a request, and of an index that is searched.

    Args:
        subject: the model.
        tokens: of a prompt and its answer.
        index: its directory; None if nothing is searched.

    Returns:
        None for a server, and for a family whose memory is not planned.
    """
    model = subject.model
    if model is None:
        return None
    base = model.reference.base
    try:
        plan = plan_generation(
            Base(path=base.path, weights=base.weights), model.dtype, device_named("here"), concurrent=1
        )
    except UserError:
        return None
    return plan.weights + plan.step + round(plan.token * tokens) + (0 if index is None else _bytes_in(index))


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
