"""A run's provenance: versions, seed, data, base, git state; enough to repeat it or to see why it differs."""

import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import extensions
from tunesmith.config.recipe import Recipe
from tunesmith.inference.model_reference import fingerprint_of
from tunesmith.models.load import fingerprint

_PACKAGES = ("tunesmith", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")


def provenance(recipe: Recipe, data: dict[str, str], tokenizer: str) -> dict[str, Any]:
    """The run's provenance as plain JSON values.

    Args:
        recipe: as resolved.
        data: SHA-256 of each data file, by name.
        tokenizer: its fingerprint.
    """
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seed": recipe.train.seed,
        "data": data,
        "base": fingerprint(recipe.base),
        "tokenizer": tokenizer,
        "models": {name: fingerprint_of(name) for name in recipe.objective.reference_paths},
        "extensions": extensions.fingerprint(recipe.extensions.values(), recipe.directory),
        "git": _git_state(),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """The commit of the repository that the run started in, and whether it had changes. None outside a repository, and
    before its first commit."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd(), timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    commit = next(line for line in lines if line.startswith("# branch.oid ")).split()[-1]
    if commit == "(initial)":
        return None
    return {"commit": commit, "changed": any(not line.startswith("#") for line in lines)}
