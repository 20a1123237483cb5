"""Makes single-line bugs of the kind that people make: a comparison negated, an argument left out, a statement dropped,
a number off by one. `tests/mutants.py` runs the tests on each."""

import ast
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "+",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "max", "zeros": "ones", "ones": "zeros"}
UNSWAPPED = ("isinstance", "issubclass", "getattr", "min", "max")
"""Functions whose first two arguments are not swapped: it would raise at once, or change nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """One change in a file.

    Attributes:
        file: path below `src/tunesmith`.
        line: first line of the replaced text, from 1.
        column: first column of the replaced text, in bytes, from 0.
        end: (line, column) of its end.
        new: the replacement.
        what: the kind of change, in words.
    """

    file: str
    line: int
    column: int
    end: tuple[int, int]
    new: str
    what: str

    @property
    def key(self) -> str:
        """Unique among all mutants of a version of the source."""
        return f"{self.file}:{self.line}:{self.column}-{self.end[0]}:{self.end[1]} → {self.new}"

    def apply(self, source: str) -> str:
        """The file's source with the change."""
        lines = source.encode().splitlines(keepends=True)
        before = b"".join(lines[: self.line - 1]) + lines[self.line - 1][: self.column]
        after = lines[self.end[0] - 1][self.end[1] :] + b"".join(lines[self.end[0] :])
        return (before + self.new.encode() + after).decode()


def mutants_of(source: str, file: str) -> list[Mutant]:
    """All mutants of a file, in order; a few are not valid Python, which `changes` detects.

    Args:
        source: the file's text.
        file: its path, for `Mutant.file`.
    """
    finder = _Finder(source, file)
    finder.visit(ast.parse(source))
    return sorted(set(finder.mutants))


def changes(mutant: Mutant, source: str) -> bool:
    """Whether the changed file is valid Python and a different program."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


class _Finder(ast.NodeVisitor):
    """Visits executed code: annotations, docstrings and messages are skipped."""

    def __init__(self, source: str, file: str) -> None:
        self.source, self.file = source, file
        self.mutants: list[Mutant] = []

    def put(self, node: ast.expr | ast.stmt | ast.keyword, new: str, what: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        end = (node.end_lineno, node.end_col_offset)
        self.mutants.append(Mutant(self.file, node.lineno, node.col_offset, end, new, what))

    def text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node) or ""

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str, what: str) -> None:
        """Replace an operator between two operands."""
        assert left.end_lineno is not None
        assert left.end_col_offset is not None
        lines = self.source.encode().splitlines(keepends=True)
        line, column = left.end_lineno, left.end_col_offset
        while line <= right.lineno:
            stop = right.col_offset if line == right.lineno else len(lines[line - 1])
            start = lines[line - 1].find(old.encode(), column, stop)
            if start >= 0:
                self.mutants.append(Mutant(self.file, line, start, (line, start + len(old)), new, what))
                return
            line, column = line + 1, 0

    # which nodes are visited

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and "ClassVar[str]" not in self.text(node.annotation):
            self.visit(node.value)
        if not isinstance(node.target, ast.Name) and node.value is not None:
            self.put(node, "pass", "statement dropped")

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets):
            return
        if not any(isinstance(target, ast.Name | ast.Tuple) for target in node.targets):
            self.put(node, "pass", "statement dropped")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.put(node, "pass", "statement dropped")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        self.put(node, "pass", "statement dropped")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.put(node, "pass", "statement dropped")

    def visit_Assert(self, node: ast.Assert) -> None:
        """Assertions inform the type checker; they are not behavior."""

    def visit_If(self, node: ast.If) -> None:
        if self.text(node.test) == "TYPE_CHECKING":
            return
        self.put(node.test, f"not ({self.text(node.test)})", "condition negated")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.put(node.test, f"not ({self.text(node.test)})", "condition negated")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.put(node, "break", "continue to break")

    def visit_Break(self, node: ast.Break) -> None:
        self.put(node, "continue", "break to continue")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            return
        self.put(node.value, "None", "nothing returned")
        self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages and names."""

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self.text(node.value) in ("Literal", "list", "dict", "tuple", "Callable", "Annotated", "ClassVar"):
            return
        self.generic_visit(node)

    # which changes are made

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old, new = _symbol(operator), COMPARISONS[type(operator)]
            self.between(left, right, old, new, f"{old} to {new}")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        kind = type(node.op)
        text = any(isinstance(each, ast.JoinedStr) or _is_text(each) for each in (node.left, node.right))
        if kind in OPERATORS and not text:
            old, new = _symbol(node.op), OPERATORS[kind]
            self.between(node.left, node.right, old, new, f"{old} to {new}")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, old, new, f"{old} to {new}")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.put(node, self.text(node.operand), f"{_symbol(node.op)} dropped")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.put(node, str(not value), "boolean negated")
        elif isinstance(value, int):
            self.put(node, str(value + 1), "number off by one")
        elif isinstance(value, float):
            self.put(node, str(value * 2 if value else 1.0), "number doubled")
        elif isinstance(value, str) and value and " " not in value:
            self.put(node, repr("XX" + value), "text changed")

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # zip's check that lengths are equal, as they are
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLS and isinstance(node.func, ast.Name):
            self.put(node.func, CALLS[name], f"{name} to {CALLS[name]}")
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict") and not (name == "Field" and keyword.arg == "default"):
                self.drop(node, keyword)
        plain = [each for each in node.args if not isinstance(each, ast.Starred | ast.GeneratorExp)]
        if len(plain) >= 2 and plain[:2] == node.args[:2] and name not in UNSWAPPED:
            swapped = f"{self.text(plain[1])}, {self.text(plain[0])}"
            start, stop = plain[0], plain[1]
            assert stop.end_lineno is not None
            assert stop.end_col_offset is not None
            end = (stop.end_lineno, stop.end_col_offset)
            self.mutants.append(Mutant(self.file, start.lineno, start.col_offset, end, swapped, "arguments swapped"))
        self.generic_visit(node)

    def drop(self, call: ast.Call, keyword: ast.keyword) -> None:
        """Leave an argument out, with the comma after or before it."""
        assert keyword.end_lineno is not None
        assert keyword.end_col_offset is not None
        lines = self.source.encode().splitlines(keepends=True)
        rest = lines[keyword.end_lineno - 1][keyword.end_col_offset :]
        end = keyword.end_col_offset + (len(rest) - len(rest.lstrip(b", ")) if rest.startswith(b",") else 0)
        column = keyword.col_offset
        if not rest.startswith(b","):
            before = lines[keyword.lineno - 1][:column]
            column = len(before.rstrip(b", ")) if before.rstrip().endswith(b",") else column
        what = f"{keyword.arg}= left out"
        self.mutants.append(Mutant(self.file, keyword.lineno, column, (keyword.end_lineno, end), "", what))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _symbol(operator: ast.AST) -> str:
    """The operator's symbol in Python."""
    match operator:
        case ast.cmpop():
            parts = ast.unparse(ast.Compare(ast.Name("a"), [operator], [ast.Name("b")]))
        case ast.operator():
            parts = ast.unparse(ast.BinOp(ast.Name("a"), operator, ast.Name("b")))
        case ast.unaryop():
            return ast.unparse(ast.UnaryOp(operator, ast.Name("b"))).removesuffix("b").strip()
        case _:
            raise TypeError(operator)
    return parts.removeprefix("a ").removesuffix(" b")
