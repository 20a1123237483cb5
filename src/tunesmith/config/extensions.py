"""Code of users: a class named as `module:Class`, imported from beside the recipe or from what is installed.

Only that is searched: the directory of the recipe, and Python's own path. The run copies a module that it finds beside
the recipe, so that the run can be resumed and evaluated without the original.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.errors import UserError


@dataclass(frozen=True)
class Beside:
    """What was imported from beside a recipe for one top-level module.

    Attributes:
        root: the directory.
        sources: the files, by their paths there, as they were imported.
        modules: their names in `sys.modules`.
    """

    root: Path
    sources: dict[Path, bytes]
    modules: frozenset[str]

    def is_current(self) -> bool:
        """Whether nothing has changed on disk since."""
        paths = ((self.root / path, source) for path, source in self.sources.items())
        return all(path.is_file() and path.read_bytes() == source for path, source in paths)


_beside: dict[str, Beside] = {}
"""By top-level module."""


class Registry(Mapping[str, str]):
    """Kinds by name → the class as `module:Class`, imported on first use. Installed packages add to them.

    Args:
        group: the entry points of packages that belong here, such as `tunesmith.methods`.
        own: our own kinds.
    """

    def __init__(self, group: str, own: dict[str, str]) -> None:
        self.group = group
        self.own = own

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {**{point.name: point.value for point in entry_points(group=self.group)}, **self.own}

    def __getitem__(self, kind: str) -> str:
        return self._kinds[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def is_added(self, kind: str) -> bool:
        """Whether an installed package registers it."""
        return kind in self and kind not in self.own

    def path(self, kind: str) -> str:
        """The class of a name here, or of `module:Class` itself, as `module:Class`."""
        return kind if is_path(kind) else self[kind]

    def load(self, kind: str, directory: Path | None = None) -> Any:
        """Import the class.

        Args:
            kind: one of the names here, or `module:Class`.
            directory: where the recipe is.

        Raises:
            UserError: it cannot be imported.
        """
        if kind in self.own:
            module, name = self.own[kind].split(":")
            return getattr(importlib.import_module(module), name)
        return imported(self.path(kind), directory)


def is_path(name: str) -> bool:
    """Whether a name is `module:Class` and not that of a registry."""
    return ":" in name


def imported(name: str, directory: Path | None = None) -> Any:
    """The object that `module:name` stands for.

    Args:
        name: the module as in an import statement, and the name in it.
        directory: of the recipe, which is searched first.

    Raises:
        UserError: there is no such module, it fails, or it has no such name.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise UserError(f"{name} is not of the form module:Class, such as my_package.losses:FocalLoss.")
    try:
        found = _import(module, directory)
    except ModuleNotFoundError as error:
        if error.name not in _parents(module):
            raise UserError(f"{name} cannot be imported: it needs {error.name}, which is not installed.") from error
        places = "is not installed" if directory is None else f"is neither in {directory} nor installed"
        raise UserError(
            f"{name} cannot be imported: {module} {places}. Put {module.partition('.')[0]}.py beside the recipe, or "
            "install its package."
        ) from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be imported: {type(error).__name__}: {error}.") from error
    if not hasattr(found, attribute):
        raise UserError(f"{name} cannot be imported: {found.__file__} has no {attribute}.")
    return getattr(found, attribute)


def files_of(name: str) -> list[Path]:
    """The Python files of `module:name` that are beside a recipe, with others there that it imports; none if the module
    is installed."""
    found = _beside.get(_top(name))
    return [] if found is None else [found.root / path for path in found.sources]


def copy_files(names: Iterable[str], directory: Path) -> None:
    """Write what is beside a recipe of these `module:Class`, as it was imported, to where it is found again."""
    for name in names:
        found = _beside.get(_top(name))
        for path, source in {} if found is None else found.sources.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(source)


def fingerprint(names: Iterable[str]) -> str:
    """SHA-256 of the source of these `module:Class`, which are imported already."""
    digest = hashlib.sha256()
    for name in names:
        found = _beside.get(_top(name))
        file = sys.modules[name.partition(":")[0]].__file__
        sources = [] if file is None else [Path(file).read_bytes()]
        for source in sources if found is None else found.sources.values():
            digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


def _top(name: str) -> str:
    """`a` of `a.b:C`."""
    return name.partition(":")[0].partition(".")[0]


def _import(module: str, directory: Path | None) -> ModuleType:
    top = _top(module)
    file = None if directory is None else _file(top, directory)
    if file is None or directory is None:
        return importlib.import_module(module)
    root = file.parent.parent if file.name == "__init__.py" else file.parent
    known = _beside.get(top)
    if known is not None and not (known.root == root and top in sys.modules and known.is_current()):
        for name in known.modules:
            sys.modules.pop(name, None)
        del _beside[top]
    before = set(sys.modules)
    with _searched(root):
        if top not in _beside:
            _load(top, file)
        found = importlib.import_module(module)
    names = {name for name in sys.modules if name not in before or _top(name) == top}
    names |= _beside[top].modules if top in _beside else set()
    sources = {path: source for name in sorted(names) for path, source in _source(name, root)}
    _beside[top] = Beside(root, sources, frozenset(name for name in names if any(_source(name, root))))
    return found


def _file(top: str, directory: Path) -> Path | None:
    """The file of a top-level module or package in a directory."""
    places = (directory / f"{top}.py", directory / top / "__init__.py")
    return next((place.resolve() for place in places if place.is_file()), None)


def _load(top: str, file: Path) -> None:
    """Import a top-level module from this file.

    Raises:
        UserError: an installed module has the same name.
    """
    known = sys.modules.get(top)
    spec = known.__spec__ if known is not None else importlib.util.find_spec(top)
    if spec is not None and (spec.origin is None or Path(spec.origin) != file):
        raise UserError(f"{file} has the name of an installed module, {top}. Give it another name.")
    package = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(top, file, submodule_search_locations=package)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise


def _source(module: str, root: Path) -> Iterator[tuple[Path, bytes]]:
    """The file of an imported module and its content, if it is in this directory itself, and not in a virtual
    environment there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    path = root.joinpath(*module.split("."))
    source = Path(file).resolve() if file else None
    if source in (path.with_suffix(".py"), path / "__init__.py") and source is not None:
        yield source.relative_to(root), source.read_bytes()


@contextmanager
def _searched(directory: Path) -> Iterator[None]:
    """Search this directory too, last, for what a module beside the recipe imports."""
    sys.path.append(str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def _parents(module: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
