"""Adapters that share one base in memory: read from PEFT's files, known by the hash of their content."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256
from tunesmith.inference.adapter_kinds import KINDS, NO_ADAPTER, Adapter, AdapterFiles, BaseShape
from tunesmith.models.adapters import refuse_pickle

FILES = ("adapter_config.json", "adapter_model.safetensors")

UNSET: tuple[Any, ...] = (None, False, "none", [], {})
"""Values of a setting of PEFT's that is not used."""


def is_shareable(directory: Path) -> bool:
    """Whether the adapter is computed beside others on one base in memory. Others are loaded with PEFT, on a base of
    their own."""
    config = _config(directory)
    return _obstacle(config) is None and all(
        name.endswith(KINDS[config["peft_type"]].endings) for name in _tensor_names(directory)
    )


def identity_of(directory: Path) -> str:
    """The SHA-256 of the adapter's files.

    Raises:
        UserError: they cannot be read.
    """
    digest = hashlib.sha256()
    for name in FILES:
        try:
            digest.update(bytes.fromhex(file_sha256(directory / name)))
        except OSError as error:
            raise UserError(f"{directory / name} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def read_adapter(directory: Path, base: BaseShape) -> Adapter:
    """Read an adapter for a base.

    Args:
        directory: with PEFT's files.
        base: what the adapter has to fit on.

    Raises:
        UserError: it is of a kind that cannot be shared, or it has a tensor that no layer of this base takes.
    """
    refuse_pickle(directory)
    identity, config = identity_of(directory), _config(directory)
    if obstacle := _obstacle(config):
        raise UserError(
            f"{directory} has {obstacle}, which cannot be shared with other adapters. Load it as a model of its own."
        )
    try:
        tensors = load_file(directory / FILES[1])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / FILES[1]} cannot be read: {error}") from None
    kind, files = KINDS[config["peft_type"]], AdapterFiles(directory, config, tensors)
    adapter = Adapter(identity, kind.layers(files, base), kind.virtual(files, base))
    if tensors:
        raise files.misfit(min(tensors))
    return adapter


class AdapterShelf:
    """Adapters by name, of which those used last are in memory.

    Args:
        base: what the adapters have to fit on.
        most_bytes: of adapters in memory; at least one stays.
    """

    def __init__(self, base: BaseShape, most_bytes: int) -> None:
        self._base, self._most_bytes = base, most_bytes
        self._directories: dict[str, tuple[Path, str]] = {}  # and the identity that the name stands for
        self._without_files: dict[str, Adapter] = {}
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()  # by identity, the last used at the end

    def add(self, name: str, directory: Path, refuse_no_effect: bool = True) -> None:
        """Add an adapter, or replace the one of that name. Answers that have begun keep the old one.

        Args:
            name: to use it by.
            directory: with PEFT's files.
            refuse_no_effect: whether an adapter that changes nothing is refused.

        Raises:
            UserError: it does not fit on the base, or has no effect.
        """
        adapter = read_adapter(directory, self._base)
        if refuse_no_effect and not adapter.has_effect:
            raise UserError(f"{directory} has no effect: every layer computes with it what the base does.")
        self._directories[name] = (directory, adapter.identity)
        self._keep(adapter)

    def put(self, name: str, adapter: Adapter | None) -> None:
        """Add an adapter that has no files, or replace the one of that name.

        Args:
            name: to use it by.
            adapter: None: none of that name.
        """
        self._without_files.pop(name, None)
        if adapter is not None:
            self._without_files[name] = adapter

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

    def get(self, name: str | None) -> Adapter:
        """The adapter, read from its files if it is not in memory.

        Args:
            name: of the adapter; None: the base as it is.

        Raises:
            UserError: there is none of that name, or its files have changed since it was added.
        """
        if name is None:
            return NO_ADAPTER
        if name in self._without_files:
            return self._without_files[name]
        directory, identity = self._known(name)
        adapter = self._loaded.get(identity)
        if adapter is None:
            adapter = read_adapter(directory, self._base)
            if adapter.identity != identity:
                raise UserError(f"adapter {name}: the files in {directory} have changed. Add it again.")
        self._keep(adapter)
        return adapter

    def _known(self, name: str) -> tuple[Path, str]:
        if name not in self._directories:
            known = ", ".join(sorted(self._directories)[:10]) or "none"
            raise UserError(f"There is no adapter {name}. Loaded: {known}.")
        return self._directories[name]

    def _keep(self, adapter: Adapter) -> None:
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
    kind = KINDS.get(config.get("peft_type", ""))
    if kind is None:
        return f"an adapter of type {config.get('peft_type')}"
    return next((name for setting, name in kind.unsupported.items() if config.get(setting) not in UNSET), None)
