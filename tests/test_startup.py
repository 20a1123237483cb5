"""A verb imports only what it needs, because users wait for every second of startup."""

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

REPORT_IMPORTS = """
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
    ("words", "unused"),
    [
        pytest.param([], LARGE | {"pydantic", "typer", "rich", "yaml", "jinja2", "psutil"}, id="import tunesmith"),
        pytest.param(["--help"], LARGE | {"pydantic", "yaml", "jinja2", "psutil"}, id="--help"),
        pytest.param(["runs", "."], LARGE | {"jinja2", "psutil"}, id="runs"),
        pytest.param(["schema"], LARGE | {"jinja2", "psutil"}, id="schema"),
        pytest.param(["methods"], LARGE | {"jinja2", "psutil"}, id="methods"),
        pytest.param(["data", "show", "--help"], LARGE | {"yaml", "jinja2", "psutil"}, id="data show --help"),
        pytest.param(["data", "show", "not_there.jsonl"], LARGE | {"jinja2", "psutil"}, id="data show without data"),
        pytest.param(["init", "not_there.jsonl"], LARGE | {"jinja2", "psutil"}, id="init without data"),
        pytest.param(["train", "not_there.yaml"], LARGE | {"jinja2", "psutil"}, id="train without a recipe"),
        pytest.param(["train", "--resume", "not_there"], LARGE | {"jinja2", "psutil"}, id="train without a run"),
    ],
)
def test_fast_commands_load_no_large_library(words: list[str], unused: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPORT_IMPORTS, json.dumps(words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert loaded & unused == set()
    assert {"tunesmith", "typer"} & loaded == ({"tunesmith"} if not words else {"tunesmith", "typer"})


@pytest.mark.long
@pytest.mark.parametrize("words", [["data", "show", "rows.jsonl"], ["methods", "--base", "base"]], ids=" ".join)
def test_commands_with_a_tokenizer_or_a_config_load_no_other_library(words: list[str], tmp_path: Path) -> None:
    """transformers imports torch even for a tokenizer alone, and PEFT comes with the recipe's method."""
    (tmp_path / "base").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n', encoding="utf-8")
    command = [sys.executable, "-c", REPORT_IMPORTS, json.dumps(words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"transformers", "peft"} <= loaded
    assert loaded & {"bitsandbytes", "sklearn", "pyarrow", "datasets"} == set()


def _imports(body: list[ast.stmt]) -> Iterator[str]:
    """Modules that these statements import when executed, without called functions and type checking."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # it may be a module
        elif isinstance(node, ast.If):
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from _imports(node.orelse if typing_only else [*node.body, *node.orelse])
        elif isinstance(node, ast.With | ast.Try):
            yield from _imports(node.body)
        elif isinstance(node, ast.Expr | ast.Assign) and "import_peft()" in ast.unparse(node):
            yield "peft"


def _file(module: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


@cache
def _directly(module: str) -> list[str]:
    """The imports of the module's own file, and its package."""
    file = _file(module)
    if file is None:
        return []
    package = [module.rpartition(".")[0]] if "." in module else []
    return package + list(_imports(ast.parse(file.read_text(encoding="utf-8")).body))


@cache
def _loads(module: str) -> frozenset[str]:
    """All modules that importing one of our modules loads, from the source. Imports in functions are not included."""
    loaded: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in loaded:
            continue
        loaded.add(name)
        if name.startswith("tunesmith"):
            pending += _directly(name)
    return frozenset(loaded)


def _of_verb(file: str, *functions: str) -> set[str]:
    """Modules that a verb's functions import, directly and indirectly."""
    tree = ast.parse((PACKAGE / "cli" / f"{file}.py").read_text(encoding="utf-8"))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
    direct = {name for function in functions for name in _imports(bodies[function])}
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
    ("verb", "unused"),
    [
        pytest.param(("use", "generate"), TRAINS | EVALUATES | {"peft"}, id="generate"),
        pytest.param(("use", "chat"), TRAINS | EVALUATES | {"peft"}, id="chat"),
        pytest.param(("use", "classify"), TRAINS | EVALUATES | {"peft"}, id="classify"),
        pytest.param(("use", "embed"), TRAINS | EVALUATES | {"peft"}, id="embed"),
        pytest.param(("use", "answer"), TRAINS | {"peft", "scipy", "sklearn"}, id="answer"),
        pytest.param(("data", "show", "_recipe"), TRAINS | EVALUATES | {"peft", "tunesmith.engine"},
                     id="data show"),
        pytest.param(("data_check", "check"), TRAINS | EVALUATES | LARGE - {"numpy"}, id="data check"),
        pytest.param(("schema", "schema"), TRAINS | EVALUATES | LARGE, id="schema"),
        pytest.param(("methods", "methods"), TRAINS | EVALUATES | LARGE, id="methods"),
        pytest.param(("plan", "plan"), EVALUATES | {"tunesmith.training"}, id="plan"),
        pytest.param(("runs", "runs"), TRAINS | EVALUATES | LARGE | {"pydantic", "jinja2"}, id="runs"),
    ],
)  # fmt: skip
def test_a_verb_imports_no_package_that_it_does_not_use(verb: tuple[str, ...], unused: set[str]) -> None:
    """Methods and objectives (`registry.METHODS.load`) are imported with the recipe, and PEFT with an adapter."""
    loaded = _of_verb(*verb)
    assert {name for name in loaded if any(f"{name}.".startswith(f"{package}.") for package in unused)} == set()


def test_the_import_search_finds_what_a_verb_needs() -> None:
    assert {"tunesmith.inference.model_reference", "torch", "transformers"} <= _of_verb("use", "generate")
    assert {"tunesmith.planner.plan", "peft"} <= _of_verb("train", "train")
    assert {"tunesmith.methods", "peft"} <= _loads("tunesmith.methods.catalog")
    assert "pydantic" in _of_verb("schema", "schema")


def test_the_command_line_itself_imports_only_typer_and_rich() -> None:
    own = {name.partition(".")[0] for name in _loads("tunesmith.cli")} - set(sys.stdlib_module_names)
    assert own == {"tunesmith", "typer", "rich"}
    assert {name for name in _loads("tunesmith.cli") if _file(name) and not name.startswith("tunesmith.cli")} == {
        "tunesmith",
        "tunesmith.comparing",
        "tunesmith.comparing.answers",  # the questions of advise and what they are about, plain values
        "tunesmith.comparing.priors",
        "tunesmith.errors",
        "tunesmith.garbage_collection",
        "tunesmith.report",
        "tunesmith.report.colors",
    }


def test_quick_imports_restores_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.garbage_collection._is_frozen", False)
    gc.unfreeze()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0, "what was imported is scanned again and again"
    with quick_imports():
        later: list[object] = []
    assert any(each is later for each in gc.get_objects()), "only the first block's objects are left out"
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


@pytest.mark.long
def test_quick_imports_leave_out_scipy_for_object_detection_alone(tmp_path: Path) -> None:
    code = """
import sys
from tunesmith.cli.quick import quick_imports
with quick_imports():
    import transformers.loss.loss_utils
    from transformers import LlamaForCausalLM
assert "scipy.optimize" not in sys.modules
assert not any(type(finder).__module__ == "tunesmith.cli.quick" for finder in sys.meta_path)
from transformers.utils import is_scipy_available
assert is_scipy_available()
import scipy.optimize
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
