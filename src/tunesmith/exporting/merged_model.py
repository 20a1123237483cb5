"""Merge a base and an adapter into one model, W + (alpha / rank) · B A, for software that cannot load adapters."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import write_users_head
from tunesmith.errors import UserError
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.load import stored_dtype
from tunesmith.models.peft_import import import_peft
from tunesmith.models.prompts import has_prompt, plain_model
from tunesmith.models.quiet import no_progress_bars
from tunesmith.modules.quantized_linear import dequantized_model
from tunesmith.modules.transposed_linear import as_stored
from tunesmith.run import atomic_directory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Into = Literal["original", "dequantized"]
"""The weights that an adapter trained on a quantized base is added to: the stored ones, or the dequantized ones that
it saw in training."""


def merged_model(reference: ModelReference, into: Into = "original") -> PreTrainedModel:
    """The adapter merged into its base, in fp32 on the CPU, without rounding to a smaller format.

    Raises:
        UserError: there is no adapter, its method cannot be merged, or a merged weight would not be finite.
    """
    if reference.adapter is None:
        raise UserError(
            f"{reference.base.path} has no adapter, so there is nothing to merge. Name a run or an adapter."
        )
    if into == "original":
        reference = reference.with_weights("auto")
    model = reference.model(torch.float32, torch.device("cpu"))
    if has_prompt(model):
        raise UserError(
            f"{reference.adapter} cannot be merged: a prompt or prefix is not part of any weight. Serve the adapter."
        )
    dequantized_model(model)
    expected = _logits(model)
    try:
        merged: PreTrainedModel = model.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise UserError(f"{reference.adapter} cannot be merged: {_reason(error)}") from error
    _unwrap_saved_modules(merged)
    for name, parameter in merged.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{reference.adapter} cannot be merged: {name} would contain values that are not finite.")
    if (_logits(merged) - expected).abs().max() > 0.01 * (1 + expected.abs().max()):
        raise UserError(
            f"{reference.adapter} cannot be merged: PEFT's merged model does not give the adapter's logits. "
            "Serve the adapter."
        )
    return merged


def save_merged(
    model: PreTrainedModel,
    reference: ModelReference,
    output: Path,
    precision: str | None = None,
    report: dict[str, Any] | None = None,
) -> Path:
    """Write the model, rounded once, and its tokenizer in Hugging Face's format, completely or not at all.

    Args:
        model: from `merged_model`.
        reference: the base and adapter that were merged.
        output: the directory to write, which must not exist.
        precision: of the written weights: fp32, bf16 or fp16. Default: as the base is stored.
        report: what was measured, for `merge.json`.

    Returns:
        The output directory.

    Raises:
        UserError: the output already exists or cannot be written, or a weight is too large for the precision.
    """
    refuse_existing(output)
    rounded = model.to(dtype_named(reference, precision))
    for name, parameter in rounded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{name} is too large for {precision or 'the precision that the base is stored in'}. Use bf16."
            )
    try:
        with atomic_directory(output) as partial, no_progress_bars():
            as_stored(rounded).save_pretrained(partial)
            reference.tokenizer().save_pretrained(partial)
            if reference.adapter is not None:
                reference.head.copy(reference.adapter, partial)
                write_users_head(reference.head, partial)
            if report is not None:
                (partial / "merge.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from None
    return output


def refuse_existing(output: Path) -> None:
    """Raises:
    UserError: the output exists.
    """
    if output.exists():
        raise UserError(f"{output} already exists. Choose another directory.")


def dtype_named(reference: ModelReference, precision: str | None) -> torch.dtype:
    """The dtype of that name. Without a name, the dtype in which the base is stored.

    Raises:
        UserError: the name is not one of `DTYPES`.
    """
    if precision is not None:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision} does not exist. Use one of {', '.join(DTYPES)}.")
        return DTYPES[precision]
    return stored_dtype(reference.base)


def _unwrap_saved_modules(merged: PreTrainedModel) -> None:
    """Replace PEFT's wrappers of trained modules (such as a head) that unloading left, with the modules themselves."""
    wrapper = import_peft().utils.ModulesToSaveWrapper
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, wrapper):
                setattr(parent, name, child.modules_to_save[child.active_adapters[0]])


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    """The logits (or hidden states) of a few tokens, to compare the model before and after merging."""
    ids = torch.arange(5, 21)[None] % plain_model(model).config.get_text_config().vocab_size
    decoder_inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs)
    logits: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return logits.float()


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, AttributeError | NotImplementedError):
        return "PEFT cannot merge this method. Serve the adapter."
    return text
