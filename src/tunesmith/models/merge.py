"""One model from a base and an adapter: W + (alpha / rank) · B A, for whatever reads no adapters."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.conv1d import as_stored
from tunesmith.models.lean import import_peft
from tunesmith.models.load import no_progress_bars, stored_dtype
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.prompts import has_prompt, plain_model
from tunesmith.models.quantize import made_whole
from tunesmith.models.sentence import STEPS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Into = Literal["original", "dequantized"]
"""Which weights an adapter that was trained on a quantized base is added to: those that were stored, or those that it
saw in training, made whole."""


def merged_model(usable: ModelReference, into: Into = "original") -> PreTrainedModel:
    """The adapter folded into its base, in fp32 on the CPU; the sum is rounded nowhere.

    Raises:
        UserError: there is no adapter, its method is not one that a weight can hold, or a weight would not be finite.
    """
    if usable.adapter is None:
        raise UserError(f"{usable.base.path} has no adapter, so there is nothing to merge. Name a run or an adapter.")
    if into == "original":
        usable = usable.whole()
    model = usable.model(torch.float32, torch.device("cpu"))
    if has_prompt(model):
        raise UserError(
            f"{usable.adapter} cannot be merged: a prompt or prefix stands before the text and is part of no weight. "
            "Serve the adapter."
        )
    made_whole(model)
    trained = _logits(model)
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise UserError(f"{usable.adapter} cannot be merged: {_reason(error)}") from error
    _take_saved_modules(merged)
    for name, parameter in merged.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{usable.adapter} cannot be merged: {name} would hold numbers that are not finite.")
    if (_logits(merged) - trained).abs().max() > 0.01 * (1 + trained.abs().max()):
        raise UserError(
            f"{usable.adapter} cannot be merged: what PEFT makes of it does not answer as the adapter does. "
            "Serve the adapter."
        )
    return merged


def save_merged(model: PreTrainedModel, usable: ModelReference, output: Path, precision: str | None = None) -> Path:
    """Write the model, rounded once, with its tokenizer in Hugging Face's format; it appears whole or not at all.

    Args:
        model: as `merged_model` gives it.
        usable: what it was made of.
        output: the directory to write, which must not exist.
        precision: of the written weights: fp32, bf16 or fp16; default: as the base is stored.

    Raises:
        UserError: the output is there already or cannot be written, or a weight is too large for the precision.
    """
    refuse_existing(output)
    rounded = model.to(dtype_named(usable, precision))
    for name, parameter in rounded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{name} is too large for {precision or 'the precision that the base is stored in'}. Set bf16."
            )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with no_progress_bars():
            as_stored(rounded).save_pretrained(partial)
        usable.tokenizer().save_pretrained(partial)
        if usable.ending.kind == "vectors":
            _save_pooling(usable, partial)
        partial.rename(output)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from None
    return output


def _save_pooling(usable: ModelReference, directory: Path) -> None:
    """What makes vectors of the body's states, as it lies beside the adapter."""
    usable.ending.write(directory)
    assert usable.adapter is not None
    for name in STEPS:
        for found in usable.adapter.glob(name):
            copy = shutil.copytree if found.is_dir() else shutil.copyfile
            copy(found, directory / found.name)


def refuse_existing(output: Path) -> None:
    """Raises:
    UserError: there is something of that name.
    """
    if output.exists():
        raise UserError(f"{output} is there already. Name a directory that is not.")


def dtype_named(usable: ModelReference, precision: str | None) -> torch.dtype:
    """The number format of that name, or, without one, the base's own.

    Raises:
        UserError: there is none of that name.
    """
    if precision is not None:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision} is not known. Give {', '.join(DTYPES)}.")
        return DTYPES[precision]
    return stored_dtype(usable.base)


def _take_saved_modules(merged: PreTrainedModel) -> None:
    """Put trained modules (a head) in their places where PEFT's unloading of a method leaves its wrappers there."""
    wrapper = import_peft().utils.ModulesToSaveWrapper
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, wrapper):
                setattr(parent, name, child.modules_to_save[child.active_adapters[0]])


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    """Of a few tokens, to hold what was merged to what it was made of."""
    ids = torch.arange(5, 21)[None] % plain_model(model).config.get_text_config().vocab_size
    written = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **written)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found.float()


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, AttributeError | NotImplementedError):
        return "PEFT has no merging for this method. Serve the adapter."
    return text
