"""How llama.cpp stores each family of models: its name, its settings, the names of its tensors and what it changes in
them.

The names are those of the gguf package. The settings are those that llama.cpp reads
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); one that it does not know is refused by name, since it
would compute something else.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunesmith.errors import UserError

Settings = Callable[[GGUFWriter, PretrainedConfig], None]


def _no_more(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """A family without settings of its own."""


@dataclass(frozen=True)
class Family:
    """A family as llama.cpp stores it.

    Attributes:
        architecture: in llama.cpp.
        prefix: what the names of the body's tensors start with in gguf's map of names.
        activations: in transformers' names; llama.cpp computes only these.
        interleaves: whether rotary pairs are neighbors, (0, 1), (2, 3) …, as in llama.cpp's first models. In
            transformers they are halves of a head.
        norm_offset: what is added to the weights of norms, which transformers stores around zero.
        left_out: starts of the names of tensors that llama.cpp does not use.
        needs: values of the config that llama.cpp takes for granted, by name.
        windows: whether llama.cpp computes sliding windows for it.
        settings: writes those that only this family has.
    """

    architecture: MODEL_ARCH
    prefix: str = "model."
    activations: tuple[str, ...] = ("silu",)
    interleaves: bool = False
    norm_offset: float = 0.0
    left_out: tuple[str, ...] = ()
    needs: Mapping[str, Any] = field(default_factory=dict)
    windows: bool = False
    settings: Settings = _no_more


@dataclass(frozen=True)
class Layout:
    """A model as llama.cpp stores it.

    Attributes:
        family: of the model.
        config: of its text part.
        body: what transformers' names of the body's tensors start with, such as `model`.
    """

    family: Family
    config: PretrainedConfig
    body: str

    @classmethod
    def of(cls, config: PretrainedConfig, body: str) -> "Layout":
        """The layout of a model with this config.

        Raises:
            UserError: llama.cpp cannot store it: its family is not known here, or it has a setting that llama.cpp
                does not compute.
        """
        text = config.get_text_config()
        family = FAMILIES.get(text.model_type)
        if family is None:
            known = ", ".join(FAMILIES)
            raise UserError(
                f"A GGUF file of a {text.model_type} model cannot be written. Export it to hf, or use one of {known}."
            )
        layout = cls(family, text, body)
        layout._check()
        return layout

    @property
    def architecture(self) -> str:
        return MODEL_ARCH_NAMES[self.family.architecture]

    @property
    def blocks(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def heads(self) -> tuple[int, int]:
        """How many heads of queries, and of keys and values."""
        queries = self.config.num_attention_heads
        return queries, getattr(self.config, "num_key_value_heads", None) or queries

    @property
    def is_tied(self) -> bool:
        """Whether the token embeddings are the output too."""
        return bool(self.config.tie_word_embeddings)

    def name(self, name: str) -> str | None:
        """The name in GGUF of a tensor of transformers; None if llama.cpp does not use it.

        Raises:
            UserError: llama.cpp has no place for it.
        """
        bare = name.removeprefix(f"{self.body}.")
        if bare.startswith(self.family.left_out) or (self.is_tied and bare.startswith("lm_head.")):
            return None
        full = bare if bare.startswith("lm_head.") else f"{self.family.prefix}{bare}"
        found: str | None = self._names.get_name(full, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"llama.cpp has no place for {name} in a {self.config.model_type} model. Export the model to hf."
            )
        return found

    def values(self, name: str, values: Tensor) -> Tensor:
        """A tensor as llama.cpp stores it.

        Args:
            name: in transformers.
            values: the tensor; a linear layer's weight is (out, in). B of a LoRA adapter is changed as its layer.
        """
        stem = name.rpartition(".")[0]
        if self.family.interleaves and stem.endswith(("q_proj", "k_proj")):
            heads = self.heads[0] if stem.endswith("q_proj") else self.heads[1]
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.transpose(1, 2).reshape(values.shape)
        if self.family.norm_offset and stem.endswith("norm"):
            values = values + self.family.norm_offset
        if self.first_position and stem.endswith("position_embeddings"):
            values = values[self.first_position :]
        return values

    @property
    def first_position(self) -> int:
        """The row of a RoBERTa model's position embeddings that belongs to the first token."""
        return self.config.pad_token_id + 1 if self.config.model_type == "roberta" else 0

    def more_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors that transformers computes from the config."""
        rope = self._rope
        if rope.get("rope_type") == "llama3":
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
            plain = rope["rope_theta"] ** (-torch.arange(len(scaled)) / len(scaled))
            yield "rope_freqs.weight", plain / scaled
        if rope.get("rope_type") == "longrope":
            yield "rope_factors_long.weight", torch.tensor(rope["long_factor"], dtype=torch.float32)
            yield "rope_factors_short.weight", torch.tensor(rope["short_factor"], dtype=torch.float32)

    def write_settings(self, writer: GGUFWriter) -> None:
        """Write what llama.cpp needs to compute the model."""
        config, (queries, keys) = self.config, self.heads
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(self.blocks)
        writer.add_feed_forward_length(_feed_forward(config))
        writer.add_head_count(queries)
        writer.add_head_count_kv(keys)
        head = getattr(config, "head_dim", None) or config.hidden_size // queries
        writer.add_key_length(head)
        writer.add_value_length(head)
        for name in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"):
            if hasattr(config, name):
                add = writer.add_layer_norm_rms_eps if name == "rms_norm_eps" else writer.add_layer_norm_eps
                add(getattr(config, name))
        if self._rope:
            writer.add_rope_dimension_count(int(head * self._rope.get("partial_rotary_factor", 1.0)))
            self._write_rope(writer)
        if self.family.windows:
            writer.add_sliding_window(config.sliding_window)
        self.family.settings(writer, config)

    @property
    def context_length(self) -> int:
        """In tokens. llama.cpp computes full attention in most families: within one window it is the same."""
        length = int(self.config.max_position_embeddings) - self.first_position
        window: int | None = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None) or ["sliding_attention"]
        if self.family.windows or window is None or "sliding_attention" not in kinds:
            return length
        return min(length, window)

    @cached_property
    def _names(self) -> Any:
        return get_tensor_name_map(self.family.architecture, self.blocks)

    @property
    def _rope(self) -> dict[str, Any]:
        """The parameters of the rotary embeddings, of full attention; empty without rotary embeddings."""
        parameters: dict[str, Any] = getattr(self.config, "rope_parameters", None) or {}
        full: dict[str, Any] = parameters.get("full_attention", parameters)
        return full

    def _write_rope(self, writer: GGUFWriter) -> None:
        rope = self._rope
        writer.add_rope_freq_base(rope["rope_theta"])
        local = (self.config.rope_parameters or {}).get("sliding_attention")
        if local is not None:
            writer.add_rope_freq_base_swa(local["rope_theta"])
        kind = rope.get("rope_type")
        if kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        if kind == "longrope":
            original = _original_length(self.config, rope)
            ratio = self.config.max_position_embeddings / original
            factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
            writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or factor)

    def _check(self) -> None:
        """Refuse a setting that llama.cpp does not compute."""
        config = self.config
        for name, value in self.family.needs.items():
            if getattr(config, name, value) != value:
                raise self._refusal(f"{name}: {getattr(config, name)}, instead of {value}")
        names = ("hidden_activation", "hidden_act", "activation_function", "activation")
        activation = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
        if activation not in self.family.activations:
            raise self._refusal(f"the activation {activation}")
        kinds = {"default", "linear", "llama3", *(["longrope"] if self.family.architecture == MODEL_ARCH.PHI3 else [])}
        rope = self._rope.get("rope_type", "default")
        if rope not in kinds:
            raise self._refusal(f"rotary embeddings of the kind {rope}")

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"A GGUF file of this {self.config.model_type} model cannot be written: llama.cpp does not compute "
            f"{what}. Export it to hf."
        )


def _feed_forward(config: PretrainedConfig) -> int:
    """The size of the feed-forward part."""
    names = ("intermediate_size", "n_inner", "hidden_dim")
    return int(next((getattr(config, name) for name in names if getattr(config, name, None)), 4 * config.hidden_size))


def _original_length(config: PretrainedConfig, rope: Mapping[str, Any]) -> int:
    """How many tokens a model with scaled rotary embeddings was pretrained with."""
    given = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(given or config.max_position_embeddings)


# The settings of single families.


def _granite(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _phi3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_sliding_window(0)  # llama.cpp computes full attention, see `Layout.context_length`
    rope = config.rope_parameters
    if rope.get("rope_type") != "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original_length(config, rope))


def _check_query_scale(config: PretrainedConfig, blocks_27b: int) -> None:
    """Refuse a Gemma whose queries are not scaled as llama.cpp does: by a head's size; in 27B, by hidden / heads."""
    per_head = config.hidden_size // config.num_attention_heads
    expected = per_head if config.num_hidden_layers == blocks_27b else config.head_dim
    if config.query_pre_attn_scalar != expected:
        raise UserError(
            f"A GGUF file of this {config.model_type} model cannot be written: llama.cpp scales its queries by "
            f"{expected}^-0.5, and query_pre_attn_scalar is {config.query_pre_attn_scalar}. Export it to hf."
        )


def _gemma2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _check_query_scale(config, blocks_27b=46)
    _write_window_period(writer, config, usual=2)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _check_query_scale(config, blocks_27b=62)
    _write_window_period(writer, config, usual=6)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_window_period(writer: GGUFWriter, config: PretrainedConfig, usual: int) -> None:
    """Write how often a block has full attention, if it is not as usual.

    Raises:
        UserError: it is not every n-th block.
    """
    full = [kind == "full_attention" for kind in config.layer_types]
    period = full.index(True) + 1 if True in full else len(full) + 1
    for every in (usual, period):
        if full == [(block + 1) % every == 0 for block in range(len(full))]:
            if every != usual:
                writer.add_uint32(f"{writer.arch}.attention.sliding_window_pattern", every)
            return
    raise UserError(
        f"A GGUF file of this {config.model_type} model cannot be written: in llama.cpp, every n-th block has full "
        "attention. Export it to hf."
    )


def _bert(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_causal_attention(False)
    writer.add_token_type_count(getattr(config, "type_vocab_size", 1))


def _distilbert(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _bert(writer, config)
    writer.add_layer_norm_eps(1e-12)  # as in transformers' DistilBertModel


_LLAMA = Family(MODEL_ARCH.LLAMA, interleaves=True, needs={"mlp_bias": False})
_GEMMA = Family(
    MODEL_ARCH.GEMMA,
    activations=("gelu_pytorch_tanh", "gelu"),  # transformers takes gelu of the first Gemma for gelu_pytorch_tanh
    norm_offset=1.0,
    needs={"attention_bias": False},
)
_GEMMA2 = replace(
    _GEMMA,
    architecture=MODEL_ARCH.GEMMA2,
    activations=("gelu_pytorch_tanh",),
    windows=True,
    settings=_gemma2,
)
_GEMMA3 = replace(
    _GEMMA2,
    architecture=MODEL_ARCH.GEMMA3,
    needs={"attention_bias": False, "attn_logit_softcapping": None},
    settings=_gemma3,
)
_BERT = Family(
    MODEL_ARCH.BERT,
    prefix="",
    activations=("gelu", "gelu_new", "gelu_pytorch_tanh"),
    left_out=("pooler.",),
    settings=_bert,
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3, needs={"attention_bias": False}),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "phi3": Family(MODEL_ARCH.PHI3, settings=_phi3),
    "granite": replace(_LLAMA, architecture=MODEL_ARCH.GRANITE, settings=_granite),
    "gpt2": Family(
        MODEL_ARCH.GPT2,
        prefix="transformer.",
        activations=("gelu_new", "gelu_pytorch_tanh"),
        needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    ),
    "bert": _BERT,
    "distilbert": replace(_BERT, settings=_distilbert),
    "roberta": _BERT,
}
"""By transformers' `model_type`."""
