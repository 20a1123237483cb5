"""`tunesmith export`: a model for another engine, kept only if it is still that model."""

import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from tunesmith.engine.allocator import release_freed_memory
from tunesmith.errors import UserError
from tunesmith.exporting.card import PARITY
from tunesmith.exporting.export import Exported, Options
from tunesmith.exporting.export import export as write
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.load import config_of, kind_of
from tunesmith.proving import mlx
from tunesmith.proving.parity import ROWS, beside, parity, write_parity
from tunesmith.report.parity import parity_markdown
from tunesmith.run import Subscriber, refuse_existing, writing
from tunesmith.run_lock import output_lock


@dataclass(frozen=True, slots=True)
class Proven(Exported):
    """The result of `export`.

    Attributes:
        parity: the content of `parity.json`; None if this kind of model cannot be compared.
        unproven: why it was not compared; None if it was.
    """

    parity: dict[str, Any] | None = None
    unproven: str | None = None


def export(
    run: str | Path,
    output: str | Path,
    to: str,
    *,
    accept_loss: bool = False,
    rows: int = ROWS,
    data: str | Path | None = None,
    subscribers: Sequence[Subscriber] = (),
    **options: Unpack[Options],
) -> Proven:
    """Write a model for another engine, read it there, and keep it only if it is still that model.

    Args:
        run: a run, an adapter, a model directory or a name of a base.
        output: the file (`gguf`) or directory to write, which must not exist.
        to: `hf`, `int8`, `nf4`, `gguf:KIND`, `ollama:KIND` or `mlx:KIND`, see `tunesmith.exporting.export.export`.
        accept_loss: keep it beyond the limits too, which its card and `parity.json` then say. Other token ids are never
            accepted.
        rows: how many rows it is compared on: of `data`, else held-out rows of the run, else built-in questions.
        data: a file of rows.
        subscribers: receive `progress` events (what, done, total).
        options: how it is written, see `tunesmith.exporting.export.Options`. An adapter alone is not compared.

    Returns:
        What was written, and how far it differs.

    Raises:
        UserError: it differs by more than the limits, and nothing is left; another process writes the output; or as
            `tunesmith.exporting.export.export`.
    """
    target = Path(output)
    is_file = to.lower().startswith("gguf")
    parts = [target, target.with_suffix(".md"), beside(target)] if is_file else [target]
    for part in parts:
        refuse_existing(part)
    with writing(target), _room(target) as room:
        for part in parts:  # another process may have written it since
            refuse_existing(part)
        done = write(run, room / target.name, to, subscribers=subscribers, **options)
        gc.collect()  # what was written refers to itself; it is not to be in memory beside what is compared
        release_freed_memory()
        unproven, result = _why_not(str(run), done.to, options.get("adapter_only", False)), None
        if unproven is None:
            result = parity(run, done.path, rows=rows, data=data, subscribers=subscribers)
            result |= {"b": str(target), "accepted_loss": bool(result["failed"]) and accept_loss}
            _refuse(result, str(run), to)
            write_parity(beside(done.path), result)
        _complete(done.card, parity_markdown(result, unproven))
        for part in sorted(room.iterdir(), key=lambda part: part.name == target.name):  # the model last
            part.rename(target.with_name(part.name))
    directory = target.parent if is_file else target
    return Proven(target, directory / done.card.name, done.to, done.merging, result, unproven)


@contextmanager
def _room(target: Path) -> Iterator[Path]:
    """A directory beside the output, for what may not be kept, which no other process uses meanwhile. What a killed
    export left in it is removed."""
    room = target.with_name(f".{target.name}.unproven")
    room.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(target):
        shutil.rmtree(room, ignore_errors=True)
        try:
            room.mkdir()
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)


def _complete(card: Path, section: str) -> None:
    """Write the comparison into the model card."""
    before, _, _ = card.read_text(encoding="utf-8").partition(PARITY)
    card.write_text(f"{before}{section}\n", encoding="utf-8")


def _why_not(run: str, to: str, adapter_only: bool) -> str | None:
    """Why an export cannot be compared with the model; None if it can."""
    reference = ModelReference.find(run)
    if adapter_only:
        return "an adapter without its base computes nothing. Export the model in one piece to compare it"
    if not reference.head.generates_text or kind_of(config_of(reference.base)) != "decoder":
        return "only decoders that write text are compared"
    if to.startswith("mlx") and not mlx.is_installed():
        return f"mlx-lm is not installed here. Compare it where it is: tunesmith parity {run} DIRECTORY"
    return None


def _refuse(result: dict[str, Any], run: str, to: str) -> None:
    """Raises:
    UserError: the form is not the model, and that was not accepted.
    """
    if result["differing"]:
        raise UserError(
            f"{run} exported to {to} is not the same model, so it was not kept: {result['failed'][0]}. "
            "It would read other tokens than in training. Export to hf, and please report it with the base's name."
        )
    if result["failed"] and not result["accepted_loss"]:
        raise UserError(
            f"{run} exported to {to} is not the same model, so it was not kept: {'; '.join(result['failed'])}. Choose "
            "a kind with more bits, weight errors with --importance-rows, or keep it anyway with --accept-loss."
        )
