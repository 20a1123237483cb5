"""Which kind of number each tensor of a GGUF file is stored in: llama.cpp's mixes, such as Q4_K_M.

A mix has one kind for most matrices, and more bits for those where errors cost most: values, what leaves the
feed-forward part, and the output. The rules are those of `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp,
for models without experts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Kind

FLOATS = (Kind.F32, Kind.F16, Kind.BF16)

GROUPED = 4
"""Query heads per key head from which values, which are then small, get more bits."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_ROLES = {
    "attn_v.weight": "value",
    "attn_qkv.weight": "value",
    "attn_q.weight": "query",
    "attn_k.weight": "key",
    "attn_output.weight": "attention_output",
    "ffn_down.weight": "down",
    "ffn_gate.weight": "up",
    "ffn_up.weight": "up",
}
_KEPT = re.compile(r"_norm\.weight$|^position_embd\.weight$|^token_types\.weight$")
"""Matrices that llama.cpp does not quantize."""


@dataclass(frozen=True, slots=True)
class TensorPosition:
    """Where a matrix is, as far as the rules look at it.

    Attributes:
        block: its block, from 0.
        blocks: how many there are.
        grouped: whether at least `GROUPED` query heads share a key head.
        weighted: whether there is an importance matrix.
    """

    block: int
    blocks: int
    grouped: bool
    weighted: bool

    @property
    def is_early(self) -> bool:
        """In the first eighth."""
        return self.block < self.blocks // 8

    @property
    def is_sensitive(self) -> bool:
        """In the first or last eighth, or every third between."""
        eighth = self.blocks // 8
        return self.is_early or self.block >= 7 * self.blocks // 8 or (self.block - eighth) % 3 == 2

    @property
    def is_70b(self) -> bool:
        """llama.cpp knows models of 70 billion parameters by their blocks; their values get more bits."""
        return self.blocks == 80 and self.grouped

    @property
    def is_middle(self) -> bool:
        """Neither in the first nor in the last eighth."""
        return self.blocks // 8 <= self.block < 7 * self.blocks // 8


Rule = Callable[[TensorPosition], Kind | None]
"""A matrix's kind; None for the kind of most."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A file type of llama.cpp.

    Attributes:
        file_type: its number in `general.file_type`.
        most: the kind of the matrices that no rule names.
        output: the kind of the output, and of token embeddings that serve as output.
        embedding: the kind of other token embeddings; None for `most`.
        rules: by a matrix's role, see `_ROLES`.
        needs_importance: whether llama.cpp refuses to quantize to it without an importance matrix.
    """

    file_type: LlamaFileType
    most: Kind
    output: Kind = Kind.Q6_K
    embedding: Kind | None = None
    rules: tuple[tuple[str, Rule], ...] = ()
    needs_importance: bool = False

    def kind(self, name: str, columns: int, position: TensorPosition, is_tied: bool) -> Kind:
        """The kind of a matrix.

        Args:
            name: in GGUF.
            columns: the length of its rows.
            position: where it is; `block` is ignored outside of blocks.
            is_tied: whether the token embeddings are the output too.
        """
        if _KEPT.search(name):
            return Kind.F32
        if self.most in FLOATS:
            return self.most
        if name == "output.weight" or (is_tied and name == "token_embd.weight"):
            return _fitting(self.output if _fits(self.output, columns) else Kind.Q8_0, columns)
        if name == "token_embd.weight":
            return _fitting(self.embedding or self.most, columns)
        return _fitting(self._in_block(_ROLES.get(_BLOCK.sub("", name), ""), position), columns)

    def _in_block(self, role: str, position: TensorPosition) -> Kind:
        rule = dict(self.rules).get(role)
        kind = (None if rule is None else rule(position)) or self.most
        if role == "value" and position.is_70b and kind in (Kind.Q3_K, Kind.Q4_K):
            return Kind.Q5_K
        return kind


def _always(kind: Kind) -> Rule:
    return lambda position: kind


def _where(condition: Callable[[TensorPosition], bool], kind: Kind, other: Kind | None = None) -> Rule:
    return lambda position: kind if condition(position) else other


def _grouped(position: TensorPosition) -> bool:
    return position.grouped


def _early(position: TensorPosition) -> bool:
    return position.is_early


def _sensitive(position: TensorPosition) -> bool:
    return position.is_sensitive


def _middle(position: TensorPosition) -> bool:
    return position.is_middle


def _early_unweighted(position: TensorPosition) -> bool:
    return position.is_early and not position.weighted


def _early_weighted(position: TensorPosition) -> bool:
    return position.is_early and position.weighted


def _mix(file_type: str, most: Kind, **more: Any) -> Mix:
    fields = {name: more.pop(name) for name in ("output", "embedding", "needs_importance") if name in more}
    return Mix(LlamaFileType[file_type], most, rules=tuple(more.items()), **fields)


def _two_bits(file_type: str, most: Kind, raised: Kind, embedding: Kind, **more: Any) -> Mix:
    """A mix around 2 bits, whose important matrices are `raised`."""
    rules = {"value": _where(_grouped, Kind.Q4_K, raised), "down": _where(_early, raised)}
    return _mix(file_type, most, output=Kind.Q5_K, embedding=embedding, needs_importance=True, **rules, **more)


_IQ4 = {"value": _where(_grouped, Kind.Q5_K), "down": _where(_early_unweighted, Kind.Q5_K)}
_MORE_BITS = {"value": _where(_sensitive, Kind.Q6_K), "down": _where(_sensitive, Kind.Q6_K)}

MIXES: dict[str, Mix] = {
    "f32": _mix("ALL_F32", Kind.F32),
    "f16": _mix("MOSTLY_F16", Kind.F16),
    "bf16": _mix("MOSTLY_BF16", Kind.BF16),
    "q8_0": _mix("MOSTLY_Q8_0", Kind.Q8_0, output=Kind.Q8_0),
    "q6_k": _mix("MOSTLY_Q6_K", Kind.Q6_K),
    "q5_k_m": _mix("MOSTLY_Q5_K_M", Kind.Q5_K, **_MORE_BITS),
    "q5_k_s": _mix("MOSTLY_Q5_K_S", Kind.Q5_K),
    "q5_1": _mix("MOSTLY_Q5_1", Kind.Q5_1),
    "q5_0": _mix("MOSTLY_Q5_0", Kind.Q5_0, down=_where(_early_weighted, Kind.Q5_1)),
    "q4_k_m": _mix("MOSTLY_Q4_K_M", Kind.Q4_K, **_MORE_BITS),
    "q4_k_s": _mix(
        "MOSTLY_Q4_K_S",
        Kind.Q4_K,
        value=_where(lambda position: position.block < 4, Kind.Q5_K),
        down=_where(_early, Kind.Q5_K),
    ),
    "q4_1": _mix("MOSTLY_Q4_1", Kind.Q4_1),
    "q4_0": _mix("MOSTLY_Q4_0", Kind.Q4_0, down=_where(_early_weighted, Kind.Q4_1)),
    "iq4_nl": _mix("MOSTLY_IQ4_NL", Kind.IQ4_NL, **_IQ4),
    "iq4_xs": _mix("MOSTLY_IQ4_XS", Kind.IQ4_XS, **_IQ4),
    "q3_k_l": _mix(
        "MOSTLY_Q3_K_L",
        Kind.Q3_K,
        value=_always(Kind.Q5_K),
        down=_always(Kind.Q5_K),
        attention_output=_always(Kind.Q5_K),
    ),
    "q3_k_m": _mix(
        "MOSTLY_Q3_K_M",
        Kind.Q3_K,
        value=_where(lambda position: position.block < 2, Kind.Q5_K, Kind.Q4_K),
        down=_where(lambda position: position.block < position.blocks // 16, Kind.Q5_K, Kind.Q4_K),
        attention_output=_always(Kind.Q4_K),
    ),
    "q3_k_s": _mix("MOSTLY_Q3_K_S", Kind.Q3_K),
    "iq3_m": _mix(
        "MOSTLY_IQ3_M",
        Kind.IQ3_S,
        value=_always(Kind.Q4_K),
        down=_where(_early, Kind.Q4_K),
        attention_output=_always(Kind.Q4_K),
    ),
    "iq3_s": _mix("MOSTLY_IQ3_S", Kind.IQ3_S, value=_where(_grouped, Kind.Q4_K)),
    "iq3_xs": _mix(
        "MOSTLY_IQ3_XS",
        Kind.IQ3_S,
        value=_where(_grouped, Kind.Q4_K),
        query=_always(Kind.IQ3_XXS),
        key=_always(Kind.IQ3_XXS),
        up=_where(_middle, Kind.IQ3_XXS),
        needs_importance=True,
    ),
    "iq3_xxs": _mix(
        "MOSTLY_IQ3_XXS",
        Kind.IQ3_XXS,
        output=Kind.Q5_K,
        embedding=Kind.IQ3_S,
        value=_where(_grouped, Kind.Q4_K),
        query=_always(Kind.IQ2_S),
        key=_always(Kind.IQ2_S),
        attention_output=_always(Kind.IQ3_S),
        needs_importance=True,
    ),
    "q2_k": _mix(
        "MOSTLY_Q2_K",
        Kind.Q2_K,
        value=_where(_grouped, Kind.Q4_K, Kind.Q3_K),
        down=_always(Kind.Q3_K),
        attention_output=_always(Kind.Q3_K),
    ),
    "q2_k_s": _mix(
        "MOSTLY_Q2_K_S",
        Kind.Q2_K,
        value=_where(_grouped, Kind.Q4_K),
        down=_where(_early, Kind.Q4_K),
        needs_importance=True,
    ),
    "iq2_m": _two_bits("MOSTLY_IQ2_M", Kind.IQ2_S, Kind.IQ3_S, Kind.IQ3_S, attention_output=_always(Kind.IQ3_S)),
    "iq2_s": _two_bits("MOSTLY_IQ2_S", Kind.IQ2_XS, Kind.IQ3_S, Kind.IQ3_S, attention_output=_always(Kind.IQ3_S)),
    "iq2_xs": _two_bits("MOSTLY_IQ2_XS", Kind.IQ2_XS, Kind.Q2_K, Kind.Q2_K),
    "iq2_xxs": _two_bits("MOSTLY_IQ2_XXS", Kind.IQ2_XXS, Kind.Q2_K, Kind.Q2_K),
    "iq1_m": _two_bits("MOSTLY_IQ1_M", Kind.IQ1_M, Kind.Q2_K, Kind.Q2_K, attention_output=_always(Kind.IQ2_XXS)),
    "iq1_s": _two_bits("MOSTLY_IQ1_S", Kind.IQ1_S, Kind.Q2_K, Kind.Q2_K, attention_output=_always(Kind.IQ2_XXS)),
}
"""By name in lower case, the most accurate first."""

_FALLBACKS = {
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
    **dict.fromkeys((Kind.Q2_K, Kind.Q3_K), Kind.Q4_0),
    **dict.fromkeys(
        (Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_XS),
        Kind.IQ4_NL,
    ),
}
"""The kind in blocks of 32 numbers that replaces one in blocks of 256."""


def _fitting(kind: Kind, columns: int) -> Kind:
    """The kind, or the next one whose blocks fill rows of that length: llama.cpp's `tensor_type_fallback`."""
    return next((each for each in (kind, _FALLBACKS.get(kind, kind)) if _fits(each, columns)), Kind.F16)


def _fits(kind: Kind, columns: int) -> bool:
    return columns % GGML_QUANT_SIZES[kind][0] == 0


def block_of(name: str) -> int | None:
    """The block of a tensor, from 0; None outside of blocks."""
    found = _BLOCK.match(name)
    return None if found is None else int(found[1])
