"""Code of users: a class named as `module:Class`, imported from beside the recipe or from what is installed.

Only that is searched: the directory of the recipe, and Python's own path. The run copies a module that it finds beside
the recipe, so that the run can be resumed and evaluated without the original. What such a module imports from beside it
must be imported at its top, not inside its functions.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import StackSummary, walk_tb
from types import ModuleType
from typing import Any

from tunesmith.errors import UserError

RESERVED = ("adapter", "checkpoints", "model", "tensorboard")
"""Names in a run's directory, which modules beside a recipe cannot have."""


@dataclass(frozen=True)
class ImportedCode:
    """What was imported from beside a recipe for one top-level module.

    Attributes:
        sources: the files, by their paths in the recipe's directory, as they were imported.
        modules: their names in `sys.modules`.
    """

    sources: dict[Path, bytes]
    modules: frozenset[str]

    def is_current(self, root: Path) -> bool:
        """Whether nothing has changed in the directory since."""
        paths = ((root / path, source) for path, source in self.sources.items())
        return all(path.is_file() and path.read_bytes() == source for path, source in paths)


_imported: dict[tuple[Path, str], ImportedCode] = {}
"""By the recipe's directory and the top-level module. Only the modules of one directory are in `sys.modules`."""


def is_path(name: str) -> bool:
    """Whether a name is `module:Class` and not that of a registry."""
    return ":" in name


def imported(name: str, directory: Path | None = None, advice: str = "") -> Any:
    """The object that `module:name` stands for.

    Args:
        name: the module as in an import statement, and the name in it.
        directory: of the recipe, which is searched first.
        advice: what to do if it cannot be imported; default: put it beside the recipe.

    Raises:
        UserError: there is no such module, it fails, or it has no such name.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise _not_imported(f"{name} is not of the form module:Class, such as my_package.losses:FocalLoss.", advice)
    if module == "__main__":
        raise UserError(f"{name} cannot be imported again by a run. Put it in a file of its own beside the recipe.")
    try:
        found = _import(module, None if directory is None else directory.resolve())
    except ModuleNotFoundError as error:
        if error.name not in _parents(module):
            missing = f"{name} cannot be imported: it needs {error.name}, which is not installed."
            raise _not_imported(missing, advice) from error
        missing = "is not installed" if directory is None else f"is neither in {directory} nor installed"
        beside = f"Put {_top(name)}.py beside the recipe, or install its package."
        raise _not_imported(f"{name} cannot be imported: {module} {missing}.", advice or beside) from None
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _not_imported(f"{name} cannot be imported: {in_one_line(error)}.", advice) from error
    if not hasattr(found, attribute):
        where = getattr(found, "__file__", None) or module
        raise _not_imported(f"{name} cannot be imported: {where} has no {attribute}.", advice)
    return getattr(found, attribute)


def _not_imported(problem: str, advice: str) -> UserError:
    return UserError(f"{problem} {advice}".rstrip())


def in_one_line(error: BaseException) -> str:
    """Such as `KeyError: 'label'`."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__).rstrip(".")


class UsersCodeError(UserError):
    """Code of a user failed. `__cause__` is what it raised."""


@contextmanager
def failures_named(code: Mapping[str, str], *signals: type[Exception]) -> Iterator[None]:
    """Turn an exception that code of users raises within into one that says where in that code.

    Args:
        code: the names in a recipe → `module:Class`, as in `Recipe.extensions`.
        signals: exceptions that are no failures.

    Raises:
        UsersCodeError: the code failed. Its first line names the class, the error, the file and the line; the part of
            the traceback that is in the code follows.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, *signals)):
            raise
        for name, path in code.items():
            if steps := _steps_in(path, error):
                problem = f"{name} failed: {in_one_line(error)} ({_place(steps)}). Correct it."
                raise UsersCodeError("\n".join([problem, *"".join(steps.format()).splitlines()])) from error
        raise


def place_of_failure(code: Mapping[str, str], error: BaseException) -> str | None:
    """The file and the line in users' code, as in `failures_named`, that an exception passed; None if there is none."""
    return next((_place(steps) for path in code.values() if (steps := _steps_in(path, error))), None)


def _steps_in(path: str, error: BaseException) -> StackSummary:
    """The part of an exception's traceback that is in the code of a `module:Class`."""
    top = _top(path)
    modules = {name for key, code in _imported.items() if key[1] == top for name in code.modules}
    frames = [
        (frame, line)
        for frame, line in walk_tb(error.__traceback__)
        if _top(name := frame.f_globals.get("__name__", "")) == top or name in modules
    ]
    return StackSummary.extract(iter(frames))


def _place(steps: StackSummary) -> str:
    return f"{steps[-1].filename}:{steps[-1].lineno}, in {steps[-1].name}"


def source_files(name: str, directory: Path | None) -> list[Path]:
    """The Python files of `module:name` that are beside the recipe, with others there that it imports; none if the
    module is installed."""
    root, found = _code_of(name, directory)
    return [root / path for path in found.sources]


def copy_code(names: Iterable[str], directory: Path | None, target: Path) -> None:
    """Write what is beside the recipe of these `module:Class`, as it was imported, to where it is found again.

    Args:
        names: as `module:Class`; those of installed modules have nothing to write.
        directory: of the recipe.
        target: the directory of a run or a pipeline.

    Raises:
        UserError: a module has the name of a directory of runs.
    """
    for name in names:
        for path, source in _code_of(name, directory)[1].sources.items():
            if path.parts[0] in RESERVED:
                raise UserError(
                    f"{name}: a run has a directory {path.parts[0]}, so a package cannot. Give it another name."
                )
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(source)


def fingerprint(names: Iterable[str], directory: Path | None) -> str:
    """SHA-256 of the source of these `module:Class`, which are imported already."""
    digest = hashlib.sha256()
    for name in names:
        found = _code_of(name, directory)[1]
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        installed = [] if file is None or not file.endswith(".py") else [Path(file).read_bytes()]
        for source in found.sources.values() if found.sources else installed:
            digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


def _code_of(name: str, directory: Path | None) -> tuple[Path, ImportedCode]:
    root = (directory or Path()).resolve()
    return root, _imported.get((root, _top(name)), ImportedCode({}, frozenset()))


def _top(name: str) -> str:
    """`a` of `a.b:C`."""
    return name.partition(":")[0].partition(".")[0]


def _import(module: str, root: Path | None) -> ModuleType:
    top = _top(module)
    file = None if root is None else _file(top, root)
    if file is None or root is None:
        if root is not None and any(top in code.modules for code in _imported.values()):
            _forget(lambda _: True)  # another recipe's module of that name
        return importlib.import_module(module)
    _forget(lambda key: key[0] != root or not _imported[key].is_current(root))
    before = set(sys.modules)
    try:
        with _searched(root):
            if top not in sys.modules or (root, top) not in _imported:
                _load(top, file)
            found = importlib.import_module(module)
    except BaseException:
        for name in set(sys.modules) - before:
            if _source(name, root) is not None:
                del sys.modules[name]
        raise
    siblings = {name for key, code in _imported.items() if key[0] == root for name in code.modules}
    names = {name for name in sys.modules if name not in before or _top(name) == top or name in siblings}
    sources = {name: source for name in sorted(names) if (source := _source(name, root)) is not None}
    _imported[root, top] = ImportedCode(
        {path: (root / path).read_bytes() for path in sources.values()}, frozenset(sources)
    )
    return found


def _forget(which: Callable[[tuple[Path, str]], bool]) -> None:
    """Remove modules that were imported from beside a recipe from `sys.modules`. What holds them keeps working."""
    for key in filter(which, _imported):
        for name in _imported[key].modules:
            if _source(name, key[0]) is not None:  # and not another recipe's module of that name
                del sys.modules[name]


def _file(top: str, directory: Path) -> Path | None:
    """The file of a top-level module or package in a directory."""
    paths = (directory / f"{top}.py", directory / top / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


def _load(top: str, file: Path) -> None:
    """Import a top-level module from this file.

    Raises:
        UserError: an installed module has the same name.
    """
    known = sys.modules.get(top)
    spec = known.__spec__ if known is not None else importlib.util.find_spec(top)
    if spec is not None and (spec.origin is None or Path(spec.origin).resolve() != file.resolve()):
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
        sys.modules.pop(top, None)
        raise


def _source(module: str, root: Path) -> Path | None:
    """The path in this directory of an imported module; None for one of elsewhere or of a virtual environment there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    path = Path(*module.split("."))
    source = Path(file).resolve() if file else None
    return next(
        (each for each in (path.with_suffix(".py"), path / "__init__.py") if source == (root / each).resolve()), None
    )


@contextmanager
def _searched(directory: Path) -> Iterator[None]:
    """Search this directory too, last, for what a module beside the recipe imports. Compiled modules are not written
    into it: Python takes one for the current file if both were changed in the same second."""
    writes_none = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.append(str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        sys.dont_write_bytecode = writes_none


def _parents(module: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
