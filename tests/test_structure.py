"""The package's structure: imports run one way, and the public functions are in the package."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import tunesmith

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_public_name_is_callable() -> None:
    for name in tunesmith.__all__:
        assert callable(getattr(tunesmith, name)), name
    import_module("tunesmith.evaluation.metrics")  # a package with the name of the function
    assert callable(tunesmith.evaluate)


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    calls = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert calls == ["make test", "make demo"]
