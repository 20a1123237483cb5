"""A small model of every family, from its real config class, with the family's special features enabled."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

ROTARY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
PLAIN = {key: ROTARY[key] for key in list(ROTARY)[:4]} | {"max_position_embeddings": 512}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": ROTARY | {"attention_bias": True},
    "mistral": ROTARY | {"sliding_window": 5},
    "phi": PLAIN | {"partial_rotary_factor": 0.5},
    "phi3": ROTARY | {"sliding_window": 5},
    "granite": ROTARY
    | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    "granitemoehybrid": ROTARY
    | EXPERTS
    | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 48, "mamba_n_heads": 8, "mamba_d_head": 8}
    | {"mamba_d_state": 16, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 16},
    "qwen2": ROTARY | {"tie_word_embeddings": True},
    "qwen3": ROTARY,
    "qwen3_moe": ROTARY | EXPERTS | {"moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "gemma2": ROTARY | {"sliding_window": 5, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0},
    "gemma3_text": ROTARY
    | {"sliding_window": 5, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 512},
    "gpt_neox": PLAIN,
    "opt": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": PLAIN | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "mixtral": ROTARY | EXPERTS,
    "gpt_oss": ROTARY | EXPERTS | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": ROTARY,
    "smollm3": ROTARY | {"no_rope_layers": [1, 0]},
    "stablelm": ROTARY,
    "starcoder2": ROTARY,
    "cohere": ROTARY | {"logit_scale": 0.5},
    "deepseek_v3": PLAIN
    | EXPERTS
    | {"num_key_value_heads": 4}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    | {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
"""Decoders by their names in transformers, with soft caps, windows, experts, state spaces and scales."""

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": PLAIN,
    "roberta": PLAIN,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "deberta": PLAIN | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": PLAIN | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": PLAIN | {"local_attention": 8, "global_attn_every_n_layers": 2, "num_hidden_layers": 3},
    "electra": PLAIN | {"embedding_size": 16},
    "xlm-roberta": PLAIN,
    "albert": PLAIN | {"embedding_size": 16},
}
"""Encoders by their names in transformers."""

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512},
}
"""Encoder-decoders by their names in transformers."""

SORTED_EXPERTS: dict[str, dict[str, Any]] = {
    "jetmoe": {key: ROTARY[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    | {"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Decoders whose experts take sorted tokens, also in attention: only the generation engine knows them."""

PADDED = {"bloom", "falcon", "granitemoehybrid", "stablelm", "deberta", "deberta-v2"}
"""Families whose attention does not support document lengths, so they are padded."""

SAFE = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout")
"""Dropout fields whose default is not zero in some families."""


def config_of(family: str, vocabulary: int = 64, **more: Any) -> PretrainedConfig:
    """The family's small config, without dropout."""
    shape = (DECODERS | ENCODERS | ENCODER_DECODERS | SORTED_EXPERTS)[family]
    ends = {"decoder_start_token_id": 2} if family in ENCODER_DECODERS else {}
    ends |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **{"vocab_size": vocabulary, **ends, **shape, **more})
    for name in vars(config):
        if "dropout" in name or name in SAFE:
            setattr(config, name, 0.0)
    return config


def kind_of(family: str) -> str:
    """decoder, encoder or encoder-decoder."""
    return "decoder" if family in DECODERS else "encoder" if family in ENCODERS else "encoder-decoder"
