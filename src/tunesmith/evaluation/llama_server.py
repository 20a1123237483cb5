"""llama.cpp's server on a GGUF file, here or in a process of its own, whose end frees the memory of the file."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError


@contextmanager
def llama_server(file: Path, context: int, threads: int) -> Iterator[str]:
    """Serve a file from another process.

    Args:
        file: the GGUF file.
        context: the most tokens of a chat with its answer.
        threads: to compute with.

    Yields:
        The address, `http://HOST:PORT`.

    Raises:
        UserError: llama.cpp cannot load the file.
    """
    command = [sys.executable, "-m", __name__, str(file), str(context), str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address.startswith("http"):
                raise UserError(f"llama.cpp cannot load {file}: {address or 'it does not say why'}")
            yield address
        finally:
            process.kill()


def server_of(file: Path, context: int, threads: int) -> Any:
    """A server in this process, which ends with the process: its destructor may never return.

    Args:
        file: the GGUF file.
        context: the most tokens of a chat with its answer.
        threads: to compute with.

    Returns:
        An `xllamacpp.Server` that listens at its `listening_address`.
    """
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = context
    params.n_parallel = 1
    params.verbosity = -1
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server


def main() -> None:
    """Serve until the process that started this one ends it, or ends itself."""
    file, context, threads = sys.argv[1:]
    try:
        print(server_of(Path(file), int(context), int(threads)).listening_address, flush=True)
        sys.stdin.read()
    except Exception as error:  # whatever llama.cpp raises is for the other process
        print(" ".join(str(error).split()), flush=True)
    os._exit(0)  # the server's threads would keep the process


if __name__ == "__main__":
    main()
