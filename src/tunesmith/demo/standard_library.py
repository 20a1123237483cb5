"""What the Python installation at hand documents of its own standard library.

Modules written in Python are parsed, not imported, so that nothing of theirs runs. What is written in C has no
source to parse; it is read from the modules in `IMPORTED`, whose import has no effect beyond itself.
"""

import ast
import inspect
import pkgutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType
from typing import Any, Literal

Kind = Literal["module", "function", "class", "exception", "method", "attribute"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Programs, tests, jokes, code tables (encodings); lib2to3 and distutils are gone from newer Pythons.
SKIPPED = frozenset(
    """antigravity distutils encodings ensurepip idlelib lib2to3 pydoc_data test this turtledemo __hello__
    __phello__""".split()
)
SKIPPED_PARTS = frozenset({"test", "tests", "__main__"})

IMPORTED = tuple(
    """array atexit audioop binascii builtins bz2 cmath codecs collections contextvars csv curses datetime decimal
    errno fcntl functools gc grp hashlib io itertools json locale lzma marshal math mmap
    multiprocessing.shared_memory operator os pickle pwd pyexpat queue random re resource select signal socket
    sqlite3 ssl statistics string struct sys syslog termios threading time tokenize types unicodedata warnings
    weakref zlib zoneinfo""".split()
)
"""Public modules that hold things written in C and can be imported without side effects, where they exist."""


@dataclass(frozen=True, slots=True)
class Documented:
    """One public thing and its docstring.

    Attributes:
        module: dotted name of the module, as one would import it.
        name: as one would write it after importing the module: `shutil.copyfile`; `str.join` for builtins.
        kind: what it is.
        signature: parameters in brackets, without self; None where there is none or it is not known.
        docstring: as written, indentation removed.
    """

    module: str
    name: str
    kind: Kind
    signature: str | None
    docstring: str


def documented() -> Iterator[Documented]:
    """Every public module, class, function, method and property that has a docstring, sorted by module."""
    stdlib = sysconfig.get_path("stdlib")
    for top in sorted(sys.stdlib_module_names):
        if top.startswith("_") or top in SKIPPED:
            continue
        found = PathFinder.find_spec(top, [stdlib])
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            yield from _from_source(top, Path(found.origin))
    written_in_c: set[int] = set()
    for module in IMPORTED:
        try:
            yield from _from_objects(module, written_in_c)
        except ImportError:
            continue  # a part of Python that this installation lacks, such as lzma or curses


def _from_source(module: str, file: Path) -> Iterator[Documented]:
    """A module and, if it is a package, all beneath it; what its `__init__` re-exports bears the package's name."""
    public = _reexported(file) if file.name == "__init__.py" else {}
    yield from _parse(module, file, {})
    if file.name == "__init__.py":
        for found in sorted(pkgutil.iter_modules([str(file.parent)]), key=lambda each: each.name):
            if found.name.startswith("_") or found.name in SKIPPED_PARTS:
                continue
            name = f"{module}.{found.name}"
            if found.ispkg:
                yield from _from_source(name, file.parent / found.name / "__init__.py")
            elif (beneath := file.parent / f"{found.name}.py").exists():
                shown = public.get(found.name, {})
                yield from _parse(name, beneath, {each: f"{module}.{as_}" for each, as_ in shown.items()})


def _reexported(init: Path) -> dict[str, dict[str, str]]:
    """For each submodule, the names that `from .submodule import name [as other]` makes the package's own."""
    names: dict[str, dict[str, str]] = {}
    for node in _tree(init).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            beneath = init.parent / f"{node.module}.py"
            for alias in node.names:
                every = _exported(_tree(beneath)) if alias.name == "*" and beneath.exists() else [alias.name]
                for name in every:
                    names.setdefault(node.module, {})[name] = alias.asname or name
    return names


def _exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`, where it is written out."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except ValueError:
                return []
    return []


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _parse(module: str, file: Path, public: dict[str, str]) -> Iterator[Documented]:
    tree = _tree(file)
    text = ast.get_docstring(tree)
    if text:
        yield Documented(module, module, "module", None, text)
    exported = set(_exported(tree))
    for node in _public_definitions(tree.body):
        if not exported or node.name in exported or node.name in public:
            name = public.get(node.name, f"{module}.{node.name}")
            yield from _definition(module, name, node, in_class=False)


def _public_definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Functions and classes with public names, also under `if` and `try`; of one defined twice, the first."""
    seen: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Definition):
            if not node.name.startswith("_") and node.name not in seen:
                seen.add(node.name)
                yield node
        elif isinstance(node, ast.If | ast.Try):
            waiting = node.body + node.orelse + waiting


def _definition(module: str, name: str, node: Definition, *, in_class: bool) -> Iterator[Documented]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        marks = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
        if text and not marks & {"overload", "setter", "deleter"}:
            is_property = bool(marks & {"property", "cached_property"})
            is_row_format = any("SpecialForm" in mark for mark in marks)  # typing.Optional is not called
            bound = in_class and "staticmethod" not in marks
            signature = None if is_property or is_row_format else _arguments(node.args, bound=bound)
            kind: Kind = "attribute" if is_property else "method" if in_class else "function"
            yield Documented(module, name, kind, signature, text)
    else:
        text = ast.get_docstring(node)
        makers = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
        maker = makers.get("__init__") or makers.get("__new__")
        if text:
            signature = _arguments(maker.args, bound=True) if maker is not None else None
            yield Documented(module, name, _class_kind(name), signature, text)
        for each in _public_definitions(node.body):
            yield from _definition(module, f"{name}.{each.name}", each, in_class=True)


def _class_kind(name: str) -> Kind:
    return "exception" if name.endswith(("Error", "Exception", "Warning")) else "class"


def _arguments(arguments: ast.arguments, *, bound: bool) -> str:
    """The parameters as written, without annotations and without self."""
    plain = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0]
    assert isinstance(plain, ast.FunctionDef)
    for each in ast.walk(plain.args):
        if isinstance(each, ast.arg):
            each.annotation = None
    if bound and (first := plain.args.posonlyargs or plain.args.args):
        del first[0]
        plain.args.defaults = plain.args.defaults[-(len(plain.args.posonlyargs) + len(plain.args.args)) :]
    return f"({ast.unparse(plain.args)})"


def _from_objects(module: str, seen: set[int]) -> Iterator[Documented]:
    """The public things of an importable module that are written in C, and not seen in another one."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        imported = import_module(module)
    prefix = "" if module == "builtins" else f"{module}."
    if not hasattr(imported, "__file__") or not str(imported.__file__).endswith(".py"):
        yield from _object(module, module, "module", imported)
    exported = getattr(imported, "__all__", None)
    for name in sorted(exported or dir(imported)):
        if not hasattr(imported, name):
            continue
        thing: Any = getattr(imported, name)
        its_own = exported is not None or getattr(thing, "__module__", None) in (module, f"_{module}")
        if name.startswith("_") or id(thing) in seen or not its_own or not _is_in_c(thing):
            continue
        own_name = str(getattr(thing, "__name__", name))
        if own_name != name and getattr(imported, own_name, None) is thing:
            continue  # a second name, such as EnvironmentError for OSError
        seen.add(id(thing))
        kind: Kind = _class_kind(name) if isinstance(thing, type) else "function"
        yield from _object(module, f"{prefix}{name}", kind, thing)
        if isinstance(thing, type):
            for attribute, member in sorted(vars(thing).items()):
                if not attribute.startswith("_"):
                    yield from _member(module, f"{prefix}{name}.{attribute}", member)


def _is_in_c(thing: Any) -> bool:
    if isinstance(thing, type):
        in_python = any(inspect.isfunction(member) for member in vars(thing).values())
        return not in_python and not _has_source(thing)
    return isinstance(thing, BuiltinFunctionType)


def _has_source(thing: type) -> bool:
    home = sys.modules.get(thing.__module__)
    file = getattr(home, "__file__", None) or ""
    return file.endswith(".py") and f"class {thing.__name__}" in _text(file)


@cache
def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


def _member(module: str, name: str, member: Any) -> Iterator[Documented]:
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    if isinstance(member, GetSetDescriptorType | MemberDescriptorType):
        yield from _object(module, name, "attribute", member)
    elif isinstance(member, MethodDescriptorType | BuiltinFunctionType) or inspect.ismethoddescriptor(member):
        yield from _object(module, name, "method", member)


def _object(module: str, name: str, kind: Kind, thing: Any) -> Iterator[Documented]:
    text = thing.__doc__
    if isinstance(text, str) and text.strip():
        yield Documented(module, name, kind, _text_signature(thing), inspect.cleandoc(text))


def _text_signature(thing: Any) -> str | None:
    """C's own signature, without the bound first parameter, as `inspect` would show it."""
    text = getattr(thing, "__text_signature__", None)
    if not text or not text.startswith("("):
        return None
    parts = [part.strip() for part in text[1:-1].split(",")]
    bound = parts and parts[0].startswith("$")
    kept = parts[1:] if bound else parts
    if bound and kept and kept[0] == "/":
        kept = kept[1:]
    return f"({', '.join(kept)})"
