"""What a verb does not need, it does not import: each second of start-up is waited for at every command."""

import ast
import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tunesmith.cli.quick import quick_imports

PACKAGE = Path(__file__).parents[1] / "src" / "tunesmith"
LARGE = {"torch", "transformers", "peft", "bitsandbytes", "numpy", "scipy", "sklearn", "pyarrow", "datasets"}

SEEN = """
import contextlib, io, json, sys
sys.argv = ["tunesmith", *json.loads(sys.argv[1])]
if len(sys.argv) == 1:
    import tunesmith
else:
    from tunesmith.cli import main
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        pytest.param([], LARGE | {"pydantic", "typer", "rich", "yaml", "jinja2", "psutil"}, id="import tunesmith"),
        pytest.param(["--help"], LARGE | {"pydantic", "yaml", "jinja2", "psutil"}, id="--help"),
        pytest.param(["runs", "."], LARGE | {"jinja2", "psutil"}, id="runs"),
    ],
)
def test_what_answers_at_once_loads_no_large_library(words: list[str], spared: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SEEN, json.dumps(words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert loaded & spared == set()
    assert {"tunesmith", "typer"} & loaded == ({"tunesmith"} if not words else {"tunesmith", "typer"})


def _imports(body: list[ast.stmt]) -> Iterator[str]:
    """Modules that these statements import when they are run, calls and type checking left out."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (f"{node.module}.{each.name}" for each in node.names)  # it may be a module
        elif isinstance(node, ast.If):
            typing_alone = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from _imports(node.orelse if typing_alone else [*node.body, *node.orelse])
        elif isinstance(node, ast.With | ast.Try):
            yield from _imports(node.body)
        elif isinstance(node, ast.Expr | ast.Assign) and "import_peft()" in ast.unparse(node):
            yield "peft"


def _file(module: str) -> Path | None:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.exists()), None)


@cache
def _directly(module: str) -> list[str]:
    """What the module's own file imports, and its package."""
    file = _file(module)
    if file is None:
        return []
    package = [module.rpartition(".")[0]] if "." in module else []
    return package + list(_imports(ast.parse(file.read_text(encoding="utf-8")).body))


@cache
def _loads(module: str) -> frozenset[str]:
    """Modules that the import of one of ours runs, by the source: what is imported within functions is not among
    them."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name.startswith("tunesmith"):
            waiting += _directly(name)
    return frozenset(found)


def _of_verb(file: str, *functions: str) -> set[str]:
    """Modules that a verb's functions import, and all that these import in turn."""
    tree = ast.parse((PACKAGE / "cli" / f"{file}.py").read_text(encoding="utf-8"))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
    direct = {name for each in functions for name in _imports(bodies[each])}
    return {module for name in direct for module in _loads(name)}


TRAINS = {
    "tunesmith.training",
    "tunesmith.planner",
    "tunesmith.engine.loop",
    "tunesmith.methods",
    "tunesmith.objectives",
}
EVALUATES = {"tunesmith.evaluation", "sklearn", "scipy", "rouge_score"}


@pytest.mark.parametrize(
    ("verb", "spared"),
    [
        pytest.param(("use", "generate", "_load_any", "_prompt"), TRAINS | EVALUATES | {"peft"}, id="generate"),
        pytest.param(("use", "chat", "_load_any", "_prompt"), TRAINS | EVALUATES | {"peft"}, id="chat"),
        pytest.param(("use", "classify", "_load_any"), TRAINS | EVALUATES | {"peft"}, id="classify"),
        pytest.param(("use", "embed", "_load_any"), TRAINS | EVALUATES | {"peft"}, id="embed"),
        pytest.param(("use", "answer"), TRAINS | {"peft", "scipy", "sklearn"}, id="answer"),
        pytest.param(("data", "show", "_recipe", "_objective"), TRAINS | EVALUATES | {"peft", "tunesmith.engine"},
                     id="data show"),
        pytest.param(("schema", "schema"), TRAINS | EVALUATES | LARGE, id="schema"),
        pytest.param(("methods", "methods"), EVALUATES | {"tunesmith.planner", "tunesmith.training"}, id="methods"),
        pytest.param(("plan", "plan"), EVALUATES | {"tunesmith.training"}, id="plan"),
        pytest.param(("runs", "runs"), TRAINS | EVALUATES | LARGE | {"pydantic", "jinja2"}, id="runs"),
    ],
)  # fmt: skip
def test_a_verb_imports_no_room_that_it_has_no_use_for(verb: tuple[str, ...], spared: set[str]) -> None:
    """Of what a recipe names (`choices.named_kind`) the rest comes when it is read, and PEFT with an adapter."""
    loaded = _of_verb(*verb)
    assert {name for name in loaded if any(f"{name}.".startswith(f"{each}.") for each in spared)} == set()


def test_what_a_verb_needs_is_seen_by_the_same_search() -> None:
    assert {"tunesmith.models.model_reference", "torch", "transformers"} <= _of_verb("use", "generate", "_load_any")
    assert {"tunesmith.planner.plan", "peft"} <= _of_verb("train", "train")
    assert {"tunesmith.methods", "peft"} <= _of_verb("methods", "methods")
    assert "pydantic" in _of_verb("schema", "schema")


def test_no_verb_imports_more_than_the_command_line_itself_before_it_is_called() -> None:
    own = {name.partition(".")[0] for name in _loads("tunesmith.cli")} - set(sys.stdlib_module_names)
    assert own == {"tunesmith", "typer", "rich"}
    assert {name for name in _loads("tunesmith.cli") if _file(name) and not name.startswith("tunesmith.cli")} == {
        "tunesmith",
        "tunesmith.errors",
    }


def test_garbage_is_collected_again_after_imports_and_stays_off_where_it_was() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with contextlib.suppress(KeyError), quick_imports():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
