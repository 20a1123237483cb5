"""Compiles on Linux what needs a compiler: the kernels of tunesmith/ops and of tunesmith/checks, and the arena if
PyTorch is installed already. Without a compiler, the package is pure Python."""

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = "-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -fno-thread-jumps -fPIC -fopenmp"
"""The OpenMP library is not linked: tunesmith.ops.native loads the one that PyTorch uses."""

LIBRARIES = ("ops/native", "checks/native")
"""Directories under src/tunesmith, each with a kernels.c."""


class Native(BuildHookInterface):  # type: ignore[type-arg]
    """Builds each kernels.so beside its sources, and includes it in the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        directories = [Path(self.root) / "src" / "tunesmith" / name for name in LIBRARIES]
        for directory in directories:
            (directory / "kernels.so").unlink(missing_ok=True)
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if sys.platform != "linux" or not compiler:
            return
        try:
            for directory in directories:
                _compile(compiler, directory)
        except (OSError, subprocess.CalledProcessError) as error:
            details = getattr(error, "stderr", "") or error
            self.app.display_warning(
                f"The native kernels were not built; PyTorch's and NumPy's are used instead. {details}"
            )
            return
        if version == "standard":  # an editable install finds it in the source directory
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"
        self._build_arena()

    def _build_arena(self) -> None:
        """Compile the arena with the PyTorch of the environment to install into, which pip hides from a build."""
        engine = Path(self.root) / "src" / "tunesmith" / "engine"
        for old in engine.glob("arena-*.so"):
            old.unlink()
        script = engine / "build_arena.py"
        visible = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # -P: the script's directory would hide modules of the same names from PyTorch.
        command = [sys.executable, "-P", str(script)]
        if subprocess.run(command, env=visible, capture_output=True, check=False).returncode:
            self.app.display_info("The arena was not built; the first run builds it, if there is a C++ compiler.")


def _compile(compiler: str, directory: Path) -> None:
    """Write the directory's kernels.so, complete or not at all."""
    library = directory / "kernels.so"
    new, object_file = library.with_suffix(".new"), library.with_suffix(".o")
    wide = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    checksum = runpy.run_path(str(directory.parents[1] / "compiled_sources.py"))["checksum"](directory)
    flags = [*shlex.split(FLAGS), *wide, f"-DSOURCE_CHECKSUM={checksum}u"]
    sources = [*shlex.split(compiler), *flags, "-c", str(directory / "kernels.c")]
    try:
        subprocess.run([*sources, "-o", str(object_file)], check=True, capture_output=True, text=True)
        subprocess.run([*shlex.split(compiler), "-shared", str(object_file), "-lm", "-o", str(new)], check=True)
        new.rename(library)
    finally:
        object_file.unlink(missing_ok=True)
