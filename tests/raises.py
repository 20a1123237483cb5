"""Which functions raise `UserError`, from the source: themselves, or in a function of ours that they call.

Calls are resolved as far as names, annotations and simple assignments tell: a function, a class, a method of a variable
whose class is known. What is called through an interface counts by the interface's own source.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from tunesmith.errors import UserError

OWN = "tunesmith"


def plain(member: Any) -> FunctionType | None:
    """The function of a method, a property, a class method or a decorated function of ours; None for anything else."""
    for name in ("fget", "func", "__func__"):
        member = getattr(member, name, None) or member
    member = inspect.unwrap(member) if callable(member) else member
    is_own = isinstance(member, FunctionType) and (member.__module__ or "").partition(".")[0] == OWN
    return member if is_own else None


def members(owner: type) -> dict[str, Any]:
    """The class's own and inherited members that are defined in our source."""
    found: dict[str, Any] = {}
    for each in reversed(owner.__mro__):
        if each.__module__.partition(".")[0] == OWN:
            found |= vars(each)
    return found


@cache
def raises_user_error(function: FunctionType, owner: type | None = None) -> bool:
    """Whether a function, as a method of `owner`, can raise a `UserError`."""
    return _search(function, owner, set())


def _search(function: FunctionType, owner: type | None, seen: set[FunctionType]) -> bool:
    if function in seen:
        return False
    seen.add(function)
    source = _source(function)
    body = Body(function, owner, source)
    return any(_raised_by(node, body, seen) for node in body.executed(source))


def _source(function: FunctionType) -> ast.AST:
    """The definition; nothing for what `dataclass` writes."""
    if function.__code__.co_filename.startswith("<"):
        return ast.Module([], [])
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def _raised_by(node: ast.AST, body: "Body", seen: set[FunctionType]) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        found = body.value(raised)
        if found is None and isinstance(node.exc, ast.Call):
            found = body.type_of(node.exc)
        if plain(found) is not None:
            found = body.hints(found).get("return")
        return isinstance(found, type) and issubclass(found, UserError)
    if isinstance(node, ast.Call):
        called, owner = body.callee(node.func)
        return called is not None and _search(called, owner, seen)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        kind = body.type_of(node.value)
        member = members(kind).get(node.attr) if kind is not None else None
        if isinstance(member, property | cached_property) and (called := plain(member)) is not None:
            return _search(called, kind, seen)
    return False


@dataclass
class Body:
    """The names and types that are known in a function."""

    function: FunctionType
    owner: type | None
    source: ast.AST
    types: dict[str, type | None] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = self.hints(self.function)
        parameters = list(inspect.signature(self.function).parameters)
        self.types |= {name: _own_class(hints.get(name)) for name in parameters}
        if self.owner is not None and parameters:
            self.types.setdefault(parameters[0], None)
            self.types[parameters[0]] = self.types[parameters[0]] or self.owner
        for node in ast.walk(self.source):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(OWN):
                module = importlib.import_module(node.module)
                self.names |= {each.asname or each.name: getattr(module, each.name) for each in node.names}
        for node in ast.walk(self.source):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.types.setdefault(node.targets[0].id, self.type_of(node.value))

    @staticmethod
    def hints(function: Any) -> Mapping[str, Any]:
        try:
            return get_type_hints(plain(function) or function)
        except (NameError, TypeError, AttributeError):  # names for type checkers only
            return {}

    def executed(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes, without what is tried by a handler of `UserError`."""
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Try) and any(self._handles(each) for each in child.handlers):
                for part in (*child.handlers, *child.orelse, *child.finalbody):
                    yield from self.executed(part)
            else:
                yield from self.executed(child)

    def _handles(self, handler: ast.ExceptHandler) -> bool:
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        caught = any(kind is None or self.value(kind) in (UserError, Exception, BaseException) for kind in kinds)
        again = any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))
        return caught and not again

    def value(self, node: ast.AST | None) -> Any:
        """The object that a dotted name stands for, if it is a global one."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, self.function.__globals__.get(node.id))
        if isinstance(node, ast.Attribute):
            base = self.value(node.value)
            return None if base is None else inspect.getattr_static(base, node.attr, None)
        return None

    def type_of(self, node: ast.AST) -> type | None:
        """Our class that an expression has; None if it is not known."""
        if isinstance(node, ast.Name) and node.id in self.types:
            return self.types[node.id]
        if isinstance(node, ast.Call):
            value = self.value(node.func)
            if isinstance(value, type):
                return value
            called, owner = self.callee(node.func)
            return None if called is None else _own_class(self.hints(called).get("return"), owner)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner is None:
                return None
            member = members(owner).get(node.attr)
            if plain(member) is not None:
                return _own_class(self.hints(member).get("return"), owner)
            return _own_class(self.hints(owner).get(node.attr)) or _assigned(owner, node.attr)
        return None

    def callee(self, node: ast.AST) -> tuple[FunctionType | None, type | None]:
        """The function that a call executes, and the class whose method it is."""
        value = self.value(node)
        if isinstance(value, type):
            made = members(value)
            return plain(made.get("__init__") or made.get("__post_init__")), value
        if plain(value) is not None:
            holder = self.value(node.value) if isinstance(node, ast.Attribute) else None
            return plain(value), holder if isinstance(holder, type) else None
        if isinstance(node, ast.Attribute):
            if ast.unparse(node.value) == "super()" and self.owner is not None:
                above = (vars(each).get(node.attr) for each in self.owner.__mro__[1:])
                return plain(next(filter(None, above), None)), self.owner
            kind = self.type_of(node.value)
            if kind is not None:
                return plain(members(kind).get(node.attr)), kind
        return None, None


@cache
def _assigned(owner: type, name: str) -> type | None:
    """The class of `self.name`, from the only assignments that say so."""
    classes = {each.__name__ for each in owner.__mro__}
    for member in members(owner).values():
        function = plain(member)
        if function is None or function.__qualname__.partition(".")[0] not in classes:
            continue
        source = _source(function)
        for node in ast.walk(source):
            if isinstance(node, ast.Assign):
                pairs = _pairs(node.targets[0], node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                pairs = [(node.target, node.value)]
            else:
                continue
            for target, value in pairs:
                if ast.unparse(target) == f"self.{name}":
                    return Body(function, owner, source).type_of(value)
    return None


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _own_class(hint: Any, owner: type | None = None) -> type | None:
    """Our class in an annotation, also as an option: `Model | None`."""
    if get_origin(hint) in (Union, UnionType):
        return next((kind for part in get_args(hint) if (kind := _own_class(part)) is not None), None)
    is_own = isinstance(hint, type) and hint.__module__.partition(".")[0] == OWN
    return hint if is_own else None
