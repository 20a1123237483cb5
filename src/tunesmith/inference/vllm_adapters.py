"""Which adapters vLLM takes."""

from collections.abc import Mapping
from typing import Any

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank` (vllm/config/lora.py)."""

UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "lora_bias": "a bias in LoRA's B",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on parameters outside of linear layers",
    "alpha_pattern": "another alpha in some layers",
    "rank_pattern": "another rank in some layers",
}
"""Settings of PEFT's LoRA that vLLM refuses or ignores (vllm/lora/peft_helper.py)."""


def vllm_obstacle(config: Mapping[str, Any]) -> str | None:
    """What keeps vLLM from taking an adapter; None if nothing does.

    Args:
        config: PEFT's, of the adapter.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"an adapter of type {kind}"
    reason = "trained biases" if config.get("bias", "none") != "none" else None
    reason = reason or next((text for key, text in UNSUPPORTED.items() if config.get(key)), None)
    if reason is None and config["r"] > VLLM_RANKS[-1]:
        return f"rank {config['r']}, and the highest is {VLLM_RANKS[-1]}"
    return reason
