"""Run Python code that a model wrote: in a process of its own, with limits, without a network.

A guard against accidents, not against an attacker: the code runs as the same user, and can read what this user can
read. Code of a model that nobody trusts belongs into a container or a virtual machine.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import Literal

Isolation = Literal["namespace", "blocked sockets"]
"""How the network is kept away: a network namespace without devices, and one of processes, which end with
it; or, where the system allows none, a Python whose sockets raise an error, which other programs could get around."""

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
_AS_CHILD = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
"""The first process of a namespace of processes ignores signals, those of limits included: it is a shell."""

_PROGRAM = """\
import os, sys
_done, _block = int(sys.argv[1]), sys.argv[2] == "blocked sockets"
_token = sys.stdin.readline()
if _block:
    def _refused(*_, **__):
        raise OSError("the network is off")
    _events = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"}
    sys.addaudithook(lambda event, _: _refused() if event in _events else None)
_source = sys.stdin.read()
sys.argv = ["answer.py"]
exec(compile(_source, "answer.py", "exec"), {"__name__": "__main__"})
os.write(_done, _token.encode())
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of the processor, and twice that of the clock.
        memory: of address space, in MiB.
        file: the largest file that it may write, in MiB.
        processes: how many processes and threads this user may have while it runs; None: as many as the system allows.
    """

    seconds: int = 5
    memory: int = 1024
    file: int = 8
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended.

    Attributes:
        passed: it ran to its last line.
        problem: None, `time`, `memory`, `killed`, or the last line that it wrote on standard error.
        output: the beginning of its standard output.
    """

    passed: bool
    problem: str | None
    output: str


@cache
def isolation() -> Isolation:
    """How programs are kept from the network on this system.

    Returns:
        `namespace` if `unshare` may make one here.
    """
    if which("unshare") is None:
        return "blocked sockets"
    done = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    return "namespace" if done.returncode == 0 else "blocked sockets"


def run_python(source: str, limits: Limits = Limits()) -> Ran:  # frozen
    """Run a program in an empty temporary directory, which is removed afterwards.

    It has no environment variables but PATH, no input, no site-packages but those of this Python, and leaves no process
    behind. A program that ends early, as by `sys.exit(0)`, has not passed.

    Args:
        source: the program.
        limits: what it may use.

    Returns:
        How it ended.
    """
    token = os.urandom(16).hex()
    kind = isolation()
    command = [sys.executable, "-I", "-c", _PROGRAM]
    read, write = os.pipe()
    prefix = [*_NAMESPACE, *_AS_CHILD] if kind == "namespace" else []
    with tempfile.TemporaryDirectory(prefix="tunesmith-code-") as directory:
        out, err = Path(directory) / ".out", Path(directory) / ".err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*prefix, *command, str(write), kind],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory, "PYTHONHASHSEED": "0"},
                pass_fds=[write],
                start_new_session=True,
                preexec_fn=lambda: _limit(limits),
            )
            os.close(write)
            timed_out = _feed_and_wait(process, f"{token}\n{source}".encode(), 2 * limits.seconds)
        os.set_blocking(read, False)
        passed = process.returncode == 0 and _written(read) == f"{token}\n"
        os.close(read)
        problem = None if passed else _problem(process.returncode, timed_out, err)
        return Ran(passed, problem, out.read_bytes()[:10_000].decode("utf-8", "replace"))


def _feed_and_wait(process: "subprocess.Popen[bytes]", source: bytes, seconds: float) -> bool:
    """Whether it was still running after so long. Afterwards nothing of its session is running."""
    try:
        process.communicate(source, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return False


def _written(read: int) -> str:
    try:
        return os.read(read, 100).decode()
    except BlockingIOError:
        return ""


def _problem(code: int, timed_out: bool, err: Path) -> str:
    lines = err.read_bytes()[-4000:].decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else ""
    ended_by = -code if code < 0 else code - 128  # a shell adds 128 to the signal
    if timed_out or ended_by in (signal.SIGXCPU, signal.SIGKILL):
        return "time"
    if last.startswith("MemoryError"):
        return "memory"
    if ended_by > 0:
        return "killed"
    return last or "it ended before its last line"


def _limit(limits: Limits) -> None:
    """In the new process, before the program starts."""
    mebibyte = 1 << 20
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory * mebibyte,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file * mebibyte,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits.processes,) * 2)
