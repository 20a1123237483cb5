"""The docstrings of the running Python's standard library.

Modules written in Python are parsed, not imported, so that none of their code runs. Objects written in C have no
source to parse; they are read from the modules in `IMPORTED`, whose import has no side effects.
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
"""Public modules with objects written in C that can be imported without side effects, if they exist."""


@dataclass(frozen=True, slots=True)
class Documented:
    """One public object and its docstring.

    Attributes:
        module: dotted name of the module, as in an import.
        name: as in code after importing the module: `shutil.copyfile`; `str.join` for builtins.
        kind: the kind of object.
        signature: parameters in parentheses, without self; None if there is none or it is unknown.
        docstring: without indentation.
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
        spec = PathFinder.find_spec(top, [stdlib])
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            yield from _from_source(top, Path(spec.origin))
    written_in_c: set[int] = set()
    for module in IMPORTED:
        try:
            yield from _from_objects(module, written_in_c)
        except ImportError:
            continue  # a part of Python that this installation lacks, such as lzma or curses


def _from_source(module: str, file: Path) -> Iterator[Documented]:
    """A module and, for a package, its submodules; objects that `__init__` re-exports get the package's name."""
    public = _reexported(file) if file.name == "__init__.py" else {}
    yield from _parse(module, file, {})
    if file.name == "__init__.py":
        for submodule in sorted(pkgutil.iter_modules([str(file.parent)]), key=lambda info: info.name):
            if submodule.name.startswith("_") or submodule.name in SKIPPED_PARTS:
                continue
            name = f"{module}.{submodule.name}"
            if submodule.ispkg:
                yield from _from_source(name, file.parent / submodule.name / "__init__.py")
            elif (source := file.parent / f"{submodule.name}.py").exists():
                exported = public.get(submodule.name, {})
                yield from _parse(name, source, {own: f"{module}.{shown_as}" for own, shown_as in exported.items()})


def _reexported(init: Path) -> dict[str, dict[str, str]]:
    """For each submodule, the names that `from .submodule import name [as other]` makes the package's own."""
    names: dict[str, dict[str, str]] = {}
    for node in _tree(init).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            source = init.parent / f"{node.module}.py"
            for alias in node.names:
                imported = _exported(_tree(source)) if alias.name == "*" and source.exists() else [alias.name]
                for name in imported:
                    names.setdefault(node.module, {})[name] = alias.asname or name
    return names


def _exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`, if it is a literal list."""
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
    """Functions and classes with public names, also under `if` and `try`; the first of several with one name."""
    seen: set[str] = set()
    pending = list(body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, Definition):
            if not node.name.startswith("_") and node.name not in seen:
                seen.add(node.name)
                yield node
        elif isinstance(node, ast.If | ast.Try):
            pending = node.body + node.orelse + pending


def _definition(module: str, name: str, node: Definition, *, in_class: bool) -> Iterator[Documented]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        marks = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
        if text and not marks & {"overload", "setter", "deleter"}:
            is_property = bool(marks & {"property", "cached_property"})
            is_special_form = any("SpecialForm" in mark for mark in marks)  # typing.Optional is not called
            bound = in_class and "staticmethod" not in marks
            signature = None if is_property or is_special_form else _arguments(node.args, bound=bound)
            kind: Kind = "attribute" if is_property else "method" if in_class else "function"
            yield Documented(module, name, kind, signature, text)
    else:
        text = ast.get_docstring(node)
        methods = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
        constructor = methods.get("__init__") or methods.get("__new__")
        if text:
            signature = _arguments(constructor.args, bound=True) if constructor is not None else None
            yield Documented(module, name, _class_kind(name), signature, text)
        for member in _public_definitions(node.body):
            yield from _definition(module, f"{name}.{member.name}", member, in_class=True)


def _class_kind(name: str) -> Kind:
    return "exception" if name.endswith(("Error", "Exception", "Warning")) else "class"


def _arguments(arguments: ast.arguments, *, bound: bool) -> str:
    """The parameters as written, without annotations and without self."""
    plain = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0]
    assert isinstance(plain, ast.FunctionDef)
    for node in ast.walk(plain.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    if bound and (first := plain.args.posonlyargs or plain.args.args):
        del first[0]
        plain.args.defaults = plain.args.defaults[-(len(plain.args.posonlyargs) + len(plain.args.args)) :]
    return f"({ast.unparse(plain.args)})"


def _from_objects(module: str, seen: set[int]) -> Iterator[Documented]:
    """The public objects of an importable module that are written in C and not in `seen`."""
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
        is_own = exported is not None or getattr(thing, "__module__", None) in (module, f"_{module}")
        if name.startswith("_") or id(thing) in seen or not is_own or not _is_in_c(thing):
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
    """The signature of a C function, without the bound first parameter, as `inspect` shows it."""
    text = getattr(thing, "__text_signature__", None)
    if not text or not text.startswith("("):
        return None
    parts = [part.strip() for part in text[1:-1].split(",")]
    bound = parts and parts[0].startswith("$")
    kept = parts[1:] if bound else parts
    if bound and kept and kept[0] == "/":
        kept = kept[1:]
    return f"({', '.join(kept)})"
