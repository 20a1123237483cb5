"""The package's structure: imports run one way, and the public functions are in the package."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import tunesmith

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_public_name_is_callable() -> None:
    for name in tunesmith.__all__:
        assert callable(getattr(tunesmith, name)), name
    import_module("tunesmith.metrics")  # a package with the name of the function
    assert callable(tunesmith.evaluate)


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    calls = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert calls == ["make test", "make demo"]


def test_the_workflow_runs_make_on_supported_pythons_and_caches_by_files_that_exist() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test", "make demo"]
    (setup,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert all((ROOT / file).exists() for file in setup["cache-dependency-path"].split())
    required = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert required is not None
    assert job["strategy"]["matrix"]["python"][0] == required[1]


def exists(dotted: str) -> bool:
    """Whether there is a module of that name, or something of that name in a module."""
    try:
        import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return bool(module) and exists(module) and hasattr(import_module(module), name)
    return True


@pytest.mark.parametrize(
    "file", [*ROOT.glob("recipes/**/*.py"), *ROOT.glob("benchmarks/*.py")], ids=lambda path: path.name
)
def test_a_script_imports_only_what_is_there(file: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    names = [f"{node.module}.{each.name}" for node in imports for each in node.names]
    missing = [name for name in names if name.startswith("tunesmith.") and not exists(name)]
    assert not missing


def test_the_pages_name_only_modules_that_are_there() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {name for page in pages for name in re.findall(r"`(tunesmith\.[\w.]+)`", page.read_text(encoding="utf-8"))}
    assert len(named) >= 5
    assert not [name for name in named if not exists(name)]
