"""One model from a base and an adapter: W + (alpha / rank) · B A, for whatever reads no adapters."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.load import locate, no_progress_bars
from tunesmith.models.usable import Usable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def merge(name: str, output: str | Path, precision: str | None = None) -> Path:
    """Fold an adapter into its base and write the model, with its tokeniser, in Hugging Face's format.

    The sum is made in fp32 and rounded once.

    Args:
        name: a run's or an adapter's directory.
        output: the directory to write, which must not exist.
        precision: of the written weights: fp32, bf16 or fp16; default: as the base is stored.

    Raises:
        UserError: nothing to merge, the output is there already or cannot be written, or a weight would not be finite.
    """
    usable = Usable.find(name)
    target = Path(output)
    if usable.adapter is None:
        raise UserError(f"{name} has no adapter, so there is nothing to merge. Name a run or an adapter's directory.")
    if target.exists():
        raise UserError(f"{output} is there already. Name a directory that is not.")
    model = usable.model(torch.float32, torch.device("cpu"))
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"{usable.adapter} cannot be merged: {error}") from error
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with no_progress_bars():
            merged.to(_dtype(usable, precision)).save_pretrained(partial)
        usable.tokenizer().save_pretrained(partial)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from None
    return target


def _dtype(usable: Usable, precision: str | None) -> torch.dtype:
    if precision is not None:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision} is not known. Give {', '.join(DTYPES)}.")
        return DTYPES[precision]
    stored = AutoConfig.from_pretrained(locate(usable.base), revision=usable.base.revision).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32
