"""Functions of the running Python's installation: found in the source files and parsed, never imported."""

import ast
import hashlib
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docstring_parser import DocstringStyle, ParseError, parse

from tunesmith.demo.standard_library import SKIPPED, SKIPPED_PARTS
from tunesmith.errors import UserError

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# Copies of other packages, which may be held out; and tests.
SKIPPED_FOLDERS = SKIPPED_PARTS | {"testing", "_testing", "_vendor", "vendor", "vendored", "externals", "extern"}
FILES_PER_PACKAGE = 400  # that are read
LONGEST_HEADER, LONGEST_SOURCE = 1000, 1200  # characters of a header, and with its docstring

EXAMPLE = "def add(a: int, b: int = 1)"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that a caller passes by name.

    Attributes:
        name: as in the signature.
        annotation: its type, if annotated.
        default: its default value; None if it has to be given.
        documented_type: its type in the docstring, or an empty string.
        description: its first sentence in the docstring as plain text, or an empty string.
    """

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    documented_type: str
    description: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function without its body.

    Attributes:
        name: without module and class.
        signature: `def add(a: int, b: int=1) -> int`, on one line.
        docstring: the first paragraph, and the part about the parameters as written.
        summary: the docstring's first sentence as plain text, or an empty string.
        parameters: without self, cls, *args and **kwargs.
    """

    name: str
    signature: str
    docstring: str
    summary: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """A top-level package or module.

    Attributes:
        name: as in an import.
        path: its directory, or its file.
    """

    name: str
    path: Path


def parse_function(source: str) -> Function:
    """The function in a text.

    Args:
        source: one function, with or without body, decorators and indentation: `def f(x: int)` is enough.

    Raises:
        UserError: the text is not one Python function.
    """
    text = textwrap.dedent(source).strip()
    body = _body(text) or _body(f"{text.removesuffix(':')}: ...")
    if body is None:
        raise UserError(f"This is not valid Python. Give one function, such as: {EXAMPLE}")
    if len(body) != 1 or not isinstance(body[0], FunctionNode):
        raise UserError(f"This is Python, but not one function. Give one, such as: {EXAMPLE}")
    return function(body[0])


def _body(text: str) -> list[ast.stmt] | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # an invalid escape is not this program's
            return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def function(node: FunctionNode) -> Function:
    """A parsed function with its docstring taken apart."""
    docstring = ast.get_docstring(node) or ""
    documented = _documented_parameters(docstring)
    parameters = tuple(
        Parameter(argument.arg, argument.annotation, default, *documented.get(argument.arg, ("", "")))
        for argument, default in _named_arguments(node.args)
    )
    return Function(node.name, _signature(node), _shown(docstring), first_sentence(docstring), parameters)


def _named_arguments(arguments: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    """Each parameter and its default value, without self, cls, *args and **kwargs."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    named = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if positional and positional[0].arg in ("self", "cls") and positional[0].annotation is None:
        del named[0]
    return named


def _signature(node: FunctionNode) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {node.name}({ast.unparse(node.args)}){returns}"


_STYLES = (
    (DocstringStyle.REST, re.compile(r"^[ \t]*:param\b", re.M)),
    (DocstringStyle.NUMPYDOC, re.compile(r"^(?:Other )?Parameters[ \t]*\n-{3,}", re.M)),
    (DocstringStyle.GOOGLE, re.compile(r"^(?:Args|Arguments|Parameters|Params):[ \t]*$", re.M)),
)
_SECTIONS = {
    DocstringStyle.REST: re.compile(r"^[ \t]*:(?:param|type)\b.*(?:\n[ \t]+[^\s:].*)*", re.M),
    DocstringStyle.NUMPYDOC: re.compile(r"^(?:Other )?Parameters[ \t]*\n-{3,}[ \t]*\n(?:(?!.*\n-{3,}).*\n?)*", re.M),
    DocstringStyle.GOOGLE: re.compile(r"^(?:Args|Arguments|Parameters|Params):[ \t]*(?:\n(?:[ \t]+.*|(?=\n)))*", re.M),
}


def _style(docstring: str) -> DocstringStyle | None:
    return next((style for style, pattern in _STYLES if pattern.search(docstring)), None)


def _documented_parameters(docstring: str) -> dict[str, tuple[str, str]]:
    """For each parameter in the docstring, its type and description; empty strings for what is missing."""
    style = _style(docstring)
    if style is None:
        return {}
    try:
        found = parse(docstring, style).params
    except ParseError:
        return {}
    return {
        name.strip(" *`"): (parameter.type_name or "", first_sentence(parameter.description or ""))
        for parameter in found
        for name in parameter.arg_name.split(",")
    }


def _shown(docstring: str) -> str:
    """The first paragraph and the parameters, as written. The rest says nothing about how to call the function."""
    style = _style(docstring)
    sections = [match[0] for match in _SECTIONS[style].finditer(docstring)] if style else []
    separator = "\n" if style is DocstringStyle.REST else "\n\n"
    paragraph = "\n".join(_first_paragraph(docstring))
    return "\n\n".join(filter(None, (paragraph, separator.join(section.strip("\n").rstrip() for section in sections))))


_STOPS = re.compile(
    r"^\s*(?:>>>|[-=~^*]{3,}$|:\w+|\.\. |[-*+] |\d+[.)] |(?:Args|Arguments|Parameters|Params|Returns):)"
)


def _first_paragraph(text: str) -> list[str]:
    """The lines up to a blank line, a list or a section."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        if not line.strip() or (_STOPS.match(line) and lines):
            break
        lines.append(line.rstrip())
    return [] if lines and _STOPS.match(lines[0]) else lines


_MARKUP = (
    (r":[a-z:]+:`~?([^`<]+?)(?: <[^`>]*>)?`", r"\1"),  # reStructuredText: :func:`open`
    (r"\[([^\[\]]+)\]\([^()\s]+\)", r"\1"),  # Markdown: [text](address)
    (r"\[(`[^`]+`)\](?:\[[\w.]*\])?", r"\1"),
    (r"``([^`]+)``|`~?([^`]+?)(?: <[^`>]*>)?`_{0,2}", r"\1\2"),
    (r"(?<![\w*])\*{1,2}(\w[^*]*?)\*{1,2}(?![\w*])", r"\1"),
    (r"\s+", " "),
)
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)(?<!\bcf)(?<!\b[A-Z])(?<!\.\.)[.!?][)'\"]?(?=\s+[^a-z\s]|\s*$)"
)


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph, on one line and without markup; empty if the text starts otherwise."""
    plain = " ".join(_first_paragraph(text))
    for pattern, replacement in _MARKUP:
        plain = re.sub(pattern, replacement, plain)
    end = _SENTENCE_END.search(plain)
    return (plain[: end.end()] if end else plain).strip()


def packages(directories: Sequence[Path] | None = None) -> list[Package]:
    """The packages and modules in some directories, sorted by name.

    Args:
        directories: directories of packages. Default: the standard library and the installed packages.
    """
    paths = map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    found: dict[str, Package] = {}
    for directory in [Path(path) for path in paths] if directories is None else directories:
        for path in sorted(directory.iterdir()):
            name = path.stem if path.suffix == ".py" else path.name
            is_package = path.suffix == ".py" or (path / "__init__.py").exists()
            # Tunesmith is left out so that a development install gives the same rows as a released one.
            if is_package and name.isidentifier() and name not in SKIPPED | SKIPPED_FOLDERS | {"tunesmith"}:
                found.setdefault(name, Package(name, path))
    return [found[name] for name in sorted(found) if not name.startswith("_")]


def functions(package: Package) -> Iterator[tuple[str, str, FunctionNode]]:
    """Functions and methods with ordinary names, not `__eq__`, whose docstring says what the parameters are.

    Only headers and docstrings are parsed, which takes a tenth of the time of whole files.

    Args:
        package: at most FILES_PER_PACKAGE of its files are read.

    Yields:
        The module, the name with the module, and the parsed function without its body.
    """
    for module, file in sorted(_files(package), key=lambda item: number(item[0]))[:FILES_PER_PACKAGE]:
        for name, source in _sources(file.read_text("utf-8", "replace")):
            body = _body(textwrap.dedent(source)) or []
            if len(body) == 1 and isinstance(body[0], FunctionNode) and not _marks(body[0]) & _NOT_CALLED:
                yield module, f"{module}.{name}", body[0]


_DEF = re.compile(r"^([ \t]*)(?:@.*\n\1)*(?:async )?def ([A-Za-z]\w*)\(|^[ \t]*class ", re.M)
_HEADER_END = re.compile(r"\)[^\n()]*:[ \t]*(?:#.*)?\n")
_QUOTES = re.compile(r'[ \t]*[rR]?"""')
_PARAMETERS = re.compile(
    r"^[ \t]*(?::param |(?:Args|Arguments|Parameters|Params):[ \t]*$|(?:Other )?Parameters[ \t]*\n[ \t]*-{3,})", re.M
)


def _sources(text: str) -> Iterator[tuple[str, str]]:
    """For each function of a file whose docstring seems to describe parameters: its name, and header with docstring."""
    starts = list(_DEF.finditer(text))
    ends = [following.start() for following in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=False):
        header = start[2] and _HEADER_END.search(text, start.end(), min(end, start.end() + LONGEST_HEADER))
        quotes = _QUOTES.match(text, header.end()) if header else None
        closing = text.find('"""', quotes.end(), start.start() + LONGEST_SOURCE) if quotes else -1
        if closing > 0 and _PARAMETERS.search(text, start.end(), closing):
            yield start[2], text[start.start() : closing + 3]


def number(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(f"tools:{name}".encode()).digest()[:8], "big") / 2**64


def _files(package: Package) -> Iterator[tuple[str, Path]]:
    if package.path.is_file():
        yield package.name, package.path
        return
    for file in package.path.rglob("*.py"):
        parts = file.relative_to(package.path).with_suffix("").parts
        if not SKIPPED_FOLDERS & set(parts) and not parts[-1].startswith(("test_", "conftest")):
            yield ".".join([package.name, *parts]).removesuffix(".__init__"), file


_NOT_CALLED = {"overload", "property", "cached_property", "setter", "deleter", "getter", "abstractproperty", "fixture"}


def _marks(node: FunctionNode) -> set[str]:
    """The last parts of its decorators' names."""
    return {ast.unparse(mark).partition("(")[0].rpartition(".")[2] for mark in node.decorator_list}
