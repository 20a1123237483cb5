"""The models that a server answers as: its own, and adapters by name, read again when their files change."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.inference.adapters import FILES, AdapterShelf
from tunesmith.inference.model_reference import ModelReference

Stamp = tuple[tuple[int, int, int], ...]
"""Time, size and number of each of an adapter's files: another stamp, maybe another content."""


@dataclass(frozen=True, slots=True)
class _Read:
    directory: Path
    stamp: Stamp


class ServedAdapters:
    """Adapters by name, some given one by one, the others in the subdirectories of a directory.

    All methods but `names` are to be called on the engine's thread.

    Args:
        shelf: the engine's.
        given: runs or adapter directories by name.
        directory: with a run or an adapter directory in each subdirectory; None: none.
    """

    def __init__(self, shelf: AdapterShelf, given: dict[str, Path], directory: Path | None) -> None:
        self._shelf, self._given, self._directory = shelf, given, directory
        self._read: dict[str, _Read] = {}
        for name in given:
            self.refresh(name)

    @property
    def names(self) -> list[str]:
        """All names."""
        if self._directory is None or not self._directory.is_dir():
            return sorted(self._given)
        found = {each.name for each in self._directory.iterdir() if _is_adapter(each)}
        return sorted(found | set(self._given))

    def knows(self, name: str) -> bool:
        """Whether there is an adapter of that name."""
        return self._path_of(name) is not None

    def refresh(self, name: str) -> str:
        """Read an adapter that has not been read, or whose files have changed. Answers that have begun keep the old
        weights.

        Returns:
            The hash of its content.

        Raises:
            UserError: there is none of that name, or it does not fit on the model.
        """
        directory = self._existing(name)
        now = _Read(directory, _stamp(directory))
        if self._read.get(name) != now:
            self._shelf.add(name, directory)
            self._read[name] = now
        return self._shelf.get(name).identity

    def load(self, name: str, path: Path) -> None:
        """Read an adapter now, as vLLM's `/v1/load_lora_adapter` does. At the start of training it has no effect yet.

        Args:
            name: of the adapter.
            path: where it is: the directory of that name in the directory of adapters.

        Raises:
            UserError: it is elsewhere, or does not fit on the model.
        """
        if self._directory is None or path.absolute() != (self._directory / name).absolute():
            where = "with --adapters DIR" if self._directory is None else f"as {self._directory.absolute() / name}"
            raise UserError(f"{path} is not where this server takes adapters from. Serve it {where}.")
        directory = self._existing(name)
        self._shelf.add(name, directory, refuse_no_effect=False)
        self._read[name] = _Read(directory, _stamp(directory))

    def unload(self, name: str) -> None:
        """Forget an adapter that was read; answers that have begun keep it.

        Raises:
            UserError: none of that name was read.
        """
        self._shelf.remove(name)
        self._read.pop(name, None)

    def _existing(self, name: str) -> Path:
        """The directory with the adapter's files.

        Raises:
            UserError: there is none.
        """
        path = self._path_of(name)
        directory = None if path is None else ModelReference.find(str(path)).adapter
        if directory is None:
            raise UserError(f"There is no adapter {name}." if path is None else f"{path} has no adapter.")
        return directory

    def _path_of(self, name: str) -> Path | None:
        if name in self._given:
            return self._given[name]
        if self._directory is None or not name or Path(name).name != name:  # `..` and paths are no names
            return None
        path = self._directory / name
        return path if _is_adapter(path) else None


def _is_adapter(path: Path) -> bool:
    """Whether a directory looks like a run with an adapter, or like an adapter."""
    if path.name.startswith("."):
        return False
    try:
        return any((path / each / FILES[0]).exists() for each in ("", "adapter"))
    except OSError:  # its name is too long, or it cannot be read
        return False


def _stamp(directory: Path) -> Stamp:
    try:
        found = [(directory / name).stat() for name in FILES]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)
