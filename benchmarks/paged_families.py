"""Which of transformers' families write text over paged caches: the list that `tunesmith bases families` prints.

    python benchmarks/paged_families.py     # three minutes; writes src/tunesmith/models/families.json

At run time there is no list: `paged_model` tries each model when it is loaded. This is the same trial on a small model
of each family, so that nobody has to load one to know. Families whose config does not take the small sizes are not
tried.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tunesmith.inference.paged_model import paged_model
from tunesmith.models.families import STORED
from tunesmith.run import atomic_write

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("n_head", "num_heads", "num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "bos_token_id"), 1),
    "moe_intermediate_size": 24,
    "vocab_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
"""Of a small model, by the names that configs have for them."""

MORE: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 16,
    },
}  # fmt: skip
"""Fields without which a small model lacks what is special about its family."""

STATES = ("Conv", "Mamba", "Delta", "Lightning", "Kda", "Recurrent")
"""Parts of the names of layers that keep a state."""

MOST_WEIGHTS, SECONDS = 3_000_000, 20
"""A family that stays larger or takes longer with these sizes is not tried."""


def is_paged(family: str) -> bool:
    """Try a small model of a family, with random weights so large that its output depends on every earlier token.

    Args:
        family: as `model_type` in `config.json`.

    Raises:
        ValueError: such a model cannot be made, is not small, or computes nothing.
    """
    model = _small_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(8.0)
        if not model.config.is_encoder_decoder:
            states = model(torch.tensor([[3, 5, 7, 9]])).logits
            if not states.isfinite().all():
                raise ValueError("not finite")
    return paged_model(model) is not None


def _small_model(family: str) -> PreTrainedModel:
    """Raises:
    ValueError: it cannot be made, or is not small.
    """
    kind: Any = AutoModelForCausalLM if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForSeq2SeqLM
    try:
        config = _small_config(family)
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
        if weights > MOST_WEIGHTS:
            raise ValueError(f"{weights:,} weights")
        torch.manual_seed(0)
        model: PreTrainedModel = kind.from_config(config).eval()
        _refuse_missing_states(model)
        return model
    except Exception as error:  # each family's code has its own for sizes that it does not like
        raise ValueError(str(error)) from error


def _refuse_missing_states(model: PreTrainedModel) -> None:
    """Raises:
    ValueError: the family's code has a layer with a state that this model has none of.
    """
    code = sys.modules[type(model).__module__]
    found = {type(module).__name__ for module in model.modules()}
    for name, kind in vars(code).items():
        is_layer = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == code.__name__
        is_part = is_layer and not issubclass(kind, PreTrainedModel)
        if is_part and any(part in name for part in STATES) and name not in found:
            raise ValueError(f"no {name}")


def _small_config(family: str) -> PretrainedConfig:
    usual = AutoConfig.for_model(family)
    given = {name for name in dir(usual) if not isinstance(getattr(type(usual), name, None), property)}
    sizes = {name: size for name, size in SIZES.items() if name in given}
    if hasattr(usual, "kv_lora_rank"):  # each head has keys of its own, made from a shared vector
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if "layer_types" in given and usual.layer_types:
        sizes["layer_types"] = (sorted(set(usual.layer_types)) * 2)[: sizes["num_hidden_layers"]]
    return AutoConfig.for_model(family, **{**sizes, **MORE.get(family, {})})


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError within the block after that processor time."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> None:
    """Try every family, and write the list."""
    found: dict[str, list[str]] = {"paged": [], "own": [], "not_tried": []}
    for family in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}):
        try:
            with _limited(SECONDS):
                found["paged" if is_paged(family) else "own"].append(family)
        except Exception as error:  # of the family's own code
            found["not_tried"].append(family)
            print(family, str(error).partition("\n")[0][:100], flush=True)
    with atomic_write(STORED) as file:
        json.dump({"transformers": transformers_version, **found}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
