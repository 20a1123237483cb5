"""The virtual environments of the peers and of Tunesmith, under benchmarks/environments/ (not in git). Standard library
only.

PyTorch is installed first, as its CPU build, so that no peer installs another one: from the configured package index if
that has it (version 2.13.0+cpu), else from PyTorch's own CPU index.
"""

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / "environments"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def python_of(environment: str) -> Path:
    return ENVIRONMENTS / environment / "bin" / "python"


def make_environment(name: str) -> None:
    """Create the environment from requirements-NAME.txt, unless it exists and was created from the same file.

    Raises:
        RuntimeError: pip failed, or installed a PyTorch with CUDA.
    """
    requirements = (HERE / f"requirements-{name}.txt").read_text()
    made_from = ENVIRONMENTS / name / "made-from.txt"
    if made_from.exists() and made_from.read_text() == requirements:
        return
    print(f"creating the environment {name} …", flush=True)
    venv.create(ENVIRONMENTS / name, with_pip=True, clear=True)
    torch = next(line for line in requirements.splitlines() if line.startswith("torch=="))
    install = [str(python_of(name)), "-m", "pip", "install", "--quiet"]
    as_configured = [*install, f"{torch}+cpu"]
    from_pytorch = [*as_configured, "--index-url", CPU_INDEX]
    if sys.platform == "linux" and _fails(as_configured) and _fails(from_pytorch):
        raise RuntimeError(f"no CPU build of {torch} was found, neither in the configured index nor in {CPU_INDEX}")
    if _fails([*install, "-r", str(HERE / f"requirements-{name}.txt")]):
        raise RuntimeError(f"pip could not install requirements-{name}.txt; its messages are above")
    check = "import torch, sys; sys.exit(torch.version.cuda is not None)"
    if _fails([str(python_of(name)), "-c", check]):
        raise RuntimeError(f"the environment {name} has a PyTorch that is not the CPU build")
    made_from.write_text(requirements)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, check=False, cwd=HERE).returncode != 0
