"""Adapter files: read without pickle, and loaded so that training continues from them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.peft_import import import_peft

PROMPT = "prompt_embeddings"
"""PEFT's key for a prompt or prefix in a file. PEFT loads it correctly, but reports the key as unexpected."""


def refuse_pickle(adapter: Path) -> None:
    """Refuse an adapter that is stored as a pickle, since reading a pickle can run any code.

    Raises:
        UserError: the adapter is a pickle.
    """
    if (adapter / "adapter_model.bin").exists() and not (adapter / "adapter_model.safetensors").exists():
        raise UserError(
            f"{adapter} stores its weights as a pickle (adapter_model.bin), which can run code when it is read. If you "
            "trust it, convert it to safetensors."
        )


@torch.no_grad()
def load_adapter_weights(peft_model: PreTrainedModel, adapter: Path) -> None:
    """Load the adapter's stored weights into the wrapped model.

    Raises:
        UserError: the method has no adapter, or the stored one was not made by this method on this base.
    """
    peft = import_peft()
    if not isinstance(peft_model, peft.PeftModel):
        raise UserError(f"base.adapter: this method trains no adapter, so it cannot continue from {adapter}.")
    refuse_pickle(adapter)
    try:
        weights = load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"base.adapter: {adapter} cannot be read: {error}") from None
    trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
    try:
        loaded = peft.set_peft_model_state_dict(peft_model, weights)
    except (RuntimeError, KeyError, ValueError) as error:
        raise _mismatch(adapter, str(error).strip().splitlines()[-1].strip()) from error
    unexpected = [name for name in loaded.unexpected_keys if name != PROMPT]
    if unexpected:
        raise _mismatch(adapter, f"it contains {unexpected[0]}")
    prompt = "prompt_encoder." if PROMPT in weights else None  # loaded, although PEFT reports it as missing
    missing = [name for name in trained if name in loaded.missing_keys and not (prompt and name.startswith(prompt))]
    if missing:
        raise _mismatch(adapter, f"it lacks {missing[0]}")


def _mismatch(adapter: Path, reason: str) -> UserError:
    return UserError(f"base.adapter: {adapter} was not made by this method on this base: {reason}")
