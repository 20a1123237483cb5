"""LoRA adapters that share one base in memory: read from PEFT's files, known by the hash of their content."""

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tunesmith.errors import UserError
from tunesmith.models.adapters import refuse_pickle
from tunesmith.ops.grouped_lora import AdapterLayers, LoraWeights

FILES = ("adapter_config.json", "adapter_model.safetensors")

UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "lora_bias": "a bias in LoRA's B",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on parameters outside of linear layers",
}
"""Settings of PEFT's LoRA that change more than a product per layer, with a name for each."""

PRODUCT = (".lora_A.weight", ".lora_B.weight")
"""How the names of a linear layer's tensors end. An adapter of an embedding has others, and the embedding itself."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter in memory.

    Attributes:
        identity: the SHA-256 of its files. Equal identity, equal answers.
        weights: for every served layer of the base, by its number; None where the adapter has none.
    """

    identity: str
    weights: AdapterLayers

    @property
    def has_effect(self) -> bool:
        """Whether any product of its weights is not zero."""
        return any(own is not None and own.scale and own.a.any() and own.b.any() for own in self.weights)

    @property
    def bytes(self) -> int:
        return self.weights.bytes


def is_shareable(directory: Path) -> bool:
    """Whether the adapter is a LoRA that is computed beside others on one base in memory. Others are loaded with PEFT,
    on a base of their own."""
    return _obstacle(_config(directory)) is None and all(name.endswith(PRODUCT) for name in _tensor_names(directory))


def identity_of(directory: Path) -> str:
    """The SHA-256 of the adapter's files.

    Raises:
        UserError: they cannot be read.
    """
    digest = hashlib.sha256()
    for name in FILES:
        try:
            with (directory / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{directory / name} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def read_adapter(directory: Path, layers: Mapping[str, int], sizes: Mapping[int, tuple[int, int]]) -> LoraAdapter:
    """Read an adapter for a base.

    Args:
        directory: with PEFT's files.
        layers: the number of each of the base's linear layers by its name.
        sizes: (in, out) of each layer by its number.

    Raises:
        UserError: it is not a plain LoRA, or it has a tensor that no layer of this base takes.
    """
    refuse_pickle(directory)
    identity, config = identity_of(directory), _config(directory)
    if obstacle := _obstacle(config):
        raise UserError(f"{directory} has {obstacle}, which cannot be shared with other adapters. Merge it first.")
    try:
        tensors = load_file(directory / FILES[1])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / FILES[1]} cannot be read: {error}") from None
    found: list[LoraWeights | None] = [None] * (max(layers.values(), default=-1) + 1)
    for name in sorted(key for key in tensors if key.endswith(".lora_A.weight")):
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        number = layers.get(layer)
        other = tensors.pop(name.replace(".lora_A.", ".lora_B."), None)
        a = tensors.pop(name)
        if number is None or other is None or (a.shape[1], other.shape[0]) != sizes[number]:
            raise UserError(f"{directory} does not fit on this base: no layer of the base takes {name}.")
        scale = _scale(config, layer, len(a))
        found[number] = LoraWeights(a.float().contiguous(), other.float().T.contiguous(), scale)
    if tensors:
        raise UserError(f"{directory} does not fit on this base: no layer of the base takes {sorted(tensors)[0]}.")
    return LoraAdapter(identity, AdapterLayers(found))


class AdapterShelf:
    """Adapters by name, of which those used last are in memory.

    Args:
        layers: the number of each of the base's linear layers by its name.
        sizes: (in, out) of each layer by its number.
        most_bytes: of adapters in memory; at least one stays.
    """

    def __init__(self, layers: Mapping[str, int], sizes: Mapping[int, tuple[int, int]], most_bytes: int) -> None:
        self._layers, self._sizes, self._most_bytes = layers, sizes, most_bytes
        self._directories: dict[str, tuple[Path, str]] = {}  # and the identity that the name stands for
        self._loaded: OrderedDict[str, LoraAdapter] = OrderedDict()  # by identity, the last used at the end

    def add(self, name: str, directory: Path, refuse_no_effect: bool = True) -> None:
        """Add an adapter, or replace the one of that name. Answers that have begun keep the old one.

        Args:
            name: to use it by.
            directory: with PEFT's files.
            refuse_no_effect: whether an adapter that changes nothing is refused.

        Raises:
            UserError: it does not fit on the base, or has no effect.
        """
        adapter = read_adapter(directory, self._layers, self._sizes)
        if refuse_no_effect and not adapter.has_effect:
            raise UserError(f"{directory} has no effect: every product of its weights is zero.")
        self._directories[name] = (directory, adapter.identity)
        self._keep(adapter)

    def remove(self, name: str) -> None:
        """Remove an adapter; answers that have begun keep it.

        Raises:
            UserError: there is none of that name.
        """
        self._known(name)
        del self._directories[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._directories)

    def get(self, name: str) -> LoraAdapter:
        """The adapter, read from its files if it is not in memory.

        Raises:
            UserError: there is none of that name, or its files have changed since it was added.
        """
        directory, identity = self._known(name)
        adapter = self._loaded.get(identity)
        if adapter is None:
            adapter = read_adapter(directory, self._layers, self._sizes)
            if adapter.identity != identity:
                raise UserError(f"adapter {name}: the files in {directory} have changed. Add it again.")
        self._keep(adapter)
        return adapter

    def _known(self, name: str) -> tuple[Path, str]:
        if name not in self._directories:
            known = ", ".join(sorted(self._directories)[:10]) or "none"
            raise UserError(f"There is no adapter {name}. Loaded: {known}.")
        return self._directories[name]

    def _keep(self, adapter: LoraAdapter) -> None:
        self._loaded[adapter.identity] = adapter
        self._loaded.move_to_end(adapter.identity)
        while len(self._loaded) > 1 and sum(each.bytes for each in self._loaded.values()) > self._most_bytes:
            self._loaded.popitem(last=False)


def _config(directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / FILES[0]} cannot be read: {error}") from None
    return config


def _tensor_names(directory: Path) -> list[str]:
    refuse_pickle(directory)
    try:
        with safe_open(directory / FILES[1], "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / FILES[1]} cannot be read: {error}") from None


def _obstacle(config: Mapping[str, Any]) -> str | None:
    """What keeps the adapter from being shared; None if nothing does."""
    if config.get("peft_type") != "LORA":
        return f"an adapter of type {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        return "trained biases"
    return next((name for setting, name in UNSUPPORTED.items() if config.get(setting)), None)


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
