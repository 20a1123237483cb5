"""The kinds of adapters that share one base in memory, as PEFT stores them, and what each becomes for the engine.

An adapter does any of three things: it changes what linear layers compute (`AdapterLayers`), it puts trained embeddings
before a sequence, or it puts trained keys and values there (`VirtualTokens`). A further kind is a function that reads
its tensors, and an entry in `KINDS`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.models.adapters import PROMPT
from tunesmith.modules.served_linear import AdapterLayers
from tunesmith.ops.document_attention import Prefix
from tunesmith.ops.grouped_ia3 import Factors
from tunesmith.ops.grouped_lora import LoraLayers, LoraWeights

FULLY_TRAINED = {"modules_to_save": "fully trained modules"}
"""Settings of PEFT's that change more than any kind here does, with a name for each."""

LORA_UNSUPPORTED = FULLY_TRAINED | {
    "bias": "trained biases",
    "use_dora": "DoRA",
    "lora_bias": "a bias in LoRA's B",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on parameters outside of linear layers",
}
"""Settings of PEFT's LoRA that change more than a product per layer, with a name for each."""


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What an adapter has to fit on.

    Attributes:
        linears: the number of each linear layer by its name.
        sizes: (in, out) of each linear layer by its number.
        hidden: numbers in a token's embedding.
        heads: of each layer's keys and values by the layer's index: how many, and the sizes of a key and of a value.
        context: the most tokens of a sequence; None: no limit.
    """

    linears: Mapping[str, int]
    sizes: Mapping[int, tuple[int, int]]
    hidden: int
    heads: Mapping[int, tuple[int, int, int]]
    context: int | None


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """Trained tokens before a sequence, which take positions of the context.

    Attributes:
        count: how many.
        embeddings: (count, hidden), fp32, to be computed like other tokens' (Lester et al. 2021); or None.
        keys_and_values: of each layer, (1, kv_heads, count, dim), fp32, to be stored (Li & Liang 2021); or none.
    """

    count: int = 0
    embeddings: Tensor | None = None
    keys_and_values: tuple[Prefix, ...] = ()

    @property
    def stored(self) -> int:
        """How many of them are stored in the cache, and not computed."""
        return self.count if self.keys_and_values else 0

    @property
    def bytes(self) -> int:
        tensors = [part for layer in self.keys_and_values for part in layer]
        tensors += [] if self.embeddings is None else [self.embeddings]
        return sum(4 * tensor.numel() for tensor in tensors)


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        identity: the SHA-256 of its files. Equal identity, equal answers. Empty: the base as it is.
        layers: what it does to linear layers.
        virtual: the tokens that it puts before a sequence.
    """

    identity: str = ""
    layers: AdapterLayers = field(default_factory=AdapterLayers)
    virtual: VirtualTokens = field(default_factory=VirtualTokens)

    @property
    def has_effect(self) -> bool:
        """Whether anything is computed otherwise than by the base."""
        return self.virtual.count > 0 or self.layers.has_effect

    @cached_property
    def bytes(self) -> int:
        return self.layers.bytes + self.virtual.bytes


NO_ADAPTER = Adapter()
"""The base as it is."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What PEFT stored.

    Attributes:
        directory: for messages.
        config: PEFT's configuration.
        tensors: by name, as far as nothing has taken them.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]

    def take(self, name: str) -> Tensor:
        """A tensor, which is then taken.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.tensors:
            raise UserError(f"{self.directory} lacks the tensor {name}.")
        return self.tensors.pop(name).float()

    def misfit(self, name: str) -> UserError:
        """The error for a tensor that nothing of the base takes."""
        return UserError(f"{self.directory} does not fit on this base: no layer of the base takes {name}.")


@dataclass(frozen=True, slots=True)
class Kind:
    """How adapters of one of PEFT's methods are read.

    Attributes:
        endings: of the names of its tensors.
        unsupported: settings that do something that the engine does not, with a name for each.
        layers: reads what the adapter does to linear layers.
        virtual: reads the tokens that it puts before a sequence.
    """

    endings: tuple[str, ...]
    unsupported: Mapping[str, str]
    layers: Callable[[AdapterFiles, BaseShape], AdapterLayers] = lambda files, base: AdapterLayers()
    virtual: Callable[[AdapterFiles, BaseShape], VirtualTokens] = lambda files, base: VirtualTokens()


# LoRA (Hu et al. 2021)


def lora_layers(files: AdapterFiles, base: BaseShape) -> AdapterLayers:
    """The products of a LoRA adapter."""
    found: list[LoraWeights | None] = [None] * (max(base.linears.values(), default=-1) + 1)
    for name in sorted(name for name in files.tensors if name.endswith(".lora_A.weight")):
        layer = _layer_of(name, ".lora_A.weight")
        a, b = files.take(name), files.take(name.replace(".lora_A.", ".lora_B."))
        number = base.linears.get(layer)
        if number is None or (a.T.shape, b.shape) != tuple((size, len(a)) for size in base.sizes[number]):
            raise files.misfit(name)
        found[number] = LoraWeights(a.contiguous(), b.T.contiguous(), _scale(files.config, layer, len(a)))
    return AdapterLayers(products=LoraLayers(found))


def _layer_of(tensor: str, suffix: str) -> str:
    return tensor.removeprefix("base_model.model.").removesuffix(suffix)


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """α / r, or α / √r (Kalajdzievski 2023), with the α of this layer."""
    alpha = _of_layer(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    own_rank = _of_layer(config.get("rank_pattern") or {}, layer, config["r"])
    if own_rank != rank:
        raise UserError(f"{layer} has rank {rank} in the file and {own_rank} in adapter_config.json.")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_layer(pattern: Mapping[str, float], layer: str, default: float) -> float:
    """The value whose key is the end of the layer's name, as PEFT matches it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


# IA3 (Liu et al. 2022)


def ia3_layers(files: AdapterFiles, base: BaseShape) -> AdapterLayers:
    """The factors of an IA3 adapter. PEFT stores those of a feed-forward's input as (1, in), others as (out, 1)."""
    found: dict[int, Factors] = {}
    for name in sorted(name for name in files.tensors if name.endswith(".ia3_l")):
        factors = files.take(name)
        number = base.linears.get(_layer_of(name, ".ia3_l"))
        inputs, outputs = (0, 0) if number is None else base.sizes[number]
        if number is None or factors.shape not in ((1, inputs), (outputs, 1)):
            raise files.misfit(name)
        own = factors.flatten().contiguous()
        found[number] = Factors(inputs=own) if factors.shape == (1, inputs) else Factors(outputs=own)
    return AdapterLayers(factors=found)


# Tokens before the text


def prompt_tokens(files: AdapterFiles, base: BaseShape) -> VirtualTokens:
    """The embeddings of prompt tuning (Lester et al. 2021), and of P-tuning (Liu et al. 2021), whose encoder PEFT
    leaves out of the file."""
    embeddings = _virtual_rows(files, base)
    if embeddings.shape[1:] != (base.hidden,):
        raise files.misfit(PROMPT)
    return VirtualTokens(len(embeddings), embeddings=embeddings)


def prefix_tokens(files: AdapterFiles, base: BaseShape) -> VirtualTokens:
    """The keys and values of prefix tuning (Li & Liang 2021). PEFT stores the result of a projection, too."""
    rows, config = _virtual_rows(files, base), files.config
    layers, heads = config["num_layers"], config["num_attention_heads"]
    size = config["token_dim"] // heads
    fits = base.heads == dict.fromkeys(range(layers), (heads, size, size))
    if not fits or rows.shape[1:] != (2 * layers * heads * size,):
        raise files.misfit(PROMPT)
    parts = rows.view(len(rows), layers, 2, heads, size).permute(1, 2, 3, 0, 4)[:, :, None].contiguous()
    return VirtualTokens(len(rows), keys_and_values=tuple((keys, values) for keys, values in parts))


def _virtual_rows(files: AdapterFiles, base: BaseShape) -> Tensor:
    """(tokens, numbers): what is stored of the virtual tokens."""
    rows, count = files.take(PROMPT), files.config["num_virtual_tokens"]
    if len(rows) != count:
        raise UserError(f"{files.directory} has {len(rows)} virtual tokens, and {count} in adapter_config.json.")
    if base.context is not None and count >= base.context:
        raise UserError(
            f"{files.directory} has {count} virtual tokens, and the model's context holds {base.context:,}, so that no "
            "text has room."
        )
    return rows


KINDS: dict[str, Kind] = {
    "LORA": Kind((".lora_A.weight", ".lora_B.weight"), LORA_UNSUPPORTED, layers=lora_layers),
    "IA3": Kind((".ia3_l",), FULLY_TRAINED, layers=ia3_layers),
    "PROMPT_TUNING": Kind((PROMPT,), FULLY_TRAINED, virtual=prompt_tokens),
    "P_TUNING": Kind((PROMPT,), FULLY_TRAINED, virtual=prompt_tokens),
    "PREFIX_TUNING": Kind((PROMPT,), FULLY_TRAINED, virtual=prefix_tokens),
    "CARTRIDGE": Kind((PROMPT,), FULLY_TRAINED, virtual=prefix_tokens),
}
"""By PEFT's name of the method."""
