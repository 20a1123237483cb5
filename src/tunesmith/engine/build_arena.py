"""Compiles the arena (arena.cpp), which needs PyTorch's headers.

The installation runs this file as a script. Where PyTorch came later, or in another version, `engine.allocator`
compiles it at the first run, which takes two or three seconds.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("arena.cpp")


def file_name() -> str:
    """The library's name, with all that decides its content."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    return f"arena-{torch.__version__}-{platform.machine()}-{source}.so"


def compile_arena(library: Path) -> None:
    """Compile `arena.cpp` into a shared library of that path; several processes may do so at the same time.

    Raises:
        OSError: there is no C++ compiler, or the directory is not writable.
        subprocess.SubprocessError: compiling fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise OSError("no C++ compiler")
    torch_directory = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-O2", "-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    paths = [f"-I{torch_directory / 'include'}", f"-L{torch_directory / 'lib'}", "-lc10"]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        new = Path(directory, library.name)
        command = [*shlex.split(compiler), *flags, str(SOURCE), *paths, "-o", str(new)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        new.rename(library)


if __name__ == "__main__" and sys.platform == "linux":
    compile_arena(SOURCE.with_name(file_name()))
