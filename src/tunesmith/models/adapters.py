"""Adapters' files: read without pickle, and gone on with."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.lean import import_peft

PROMPT = "prompt_embeddings"
"""What PEFT calls a prompt or prefix in a file; it takes it up by itself and then wonders at the name."""


def refuse_pickle(adapter: Path) -> None:
    """A pickle can run any code when it is read.

    Raises:
        UserError: the adapter is one.
    """
    if (adapter / "adapter_model.bin").exists() and not (adapter / "adapter_model.safetensors").exists():
        raise UserError(
            f"{adapter} holds its weights as a pickle (adapter_model.bin), which can run code when it is read. Convert "
            "it to safetensors where you trust it."
        )


@torch.no_grad()
def load_adapter_weights(peft_model: PreTrainedModel, adapter: Path) -> None:
    """Give the method's weights the values that the adapter's files hold.

    Raises:
        UserError: there is no adapter, or it was not made by this method on this base.
    """
    peft = import_peft()
    if not isinstance(peft_model, peft.PeftModel):
        raise UserError(f"base.adapter: {adapter} is an adapter, and this method leaves none to go on with.")
    refuse_pickle(adapter)
    try:
        weights = load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"base.adapter: {adapter} cannot be read: {error}") from None
    trained = [name for name, each in peft_model.named_parameters() if each.requires_grad]
    try:
        found = peft.set_peft_model_state_dict(peft_model, weights)
    except (RuntimeError, KeyError, ValueError) as error:
        raise _other(adapter, str(error).strip().splitlines()[0]) from error
    unexpected = [name for name in found.unexpected_keys if name != PROMPT]
    if unexpected:
        raise _other(adapter, f"it holds {unexpected[0]}")
    apart = "prompt_encoder." if PROMPT in weights else None
    missing = [name for name in trained if name in found.missing_keys and not (apart and name.startswith(apart))]
    if missing:
        raise _other(adapter, f"it lacks {missing[0]}")


def _other(adapter: Path, why: str) -> UserError:
    return UserError(f"base.adapter: {adapter} was not made by this method on this base: {why}")
