"""Only one process at a time writes a run, or another output: the lock of its directory or path.

The lock is flock(2) on a file in the directory, or beside the path. The system releases it when the process ends,
however it ends, so a killed run can be resumed at once. The file's text names the process for the message only, and may
be out of date.
"""

import errno
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.errors import UserError

LOCK_FILE = ".lock"
"""The locked file in the directory of a run or a pipeline; it is gone when nothing writes there."""

logger = logging.getLogger(__name__)


@contextmanager
def write_lock(directory: Path, advice: str | None = None) -> Iterator[None]:
    """Within the context, no other process and no other thread enters it for the same directory.

    Where the file system has no locks, that is logged as a warning and nothing is locked.

    Args:
        directory: of a run or a pipeline; must exist.
        advice: what the refused process can do besides waiting; default: stop the other one and resume the run.

    Raises:
        UserError: the directory is locked, or nothing can be written in it.
    """
    with _locked(directory / LOCK_FILE, directory, _of_run(directory) if advice is None else advice):
        yield


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """As `write_lock`, for one output file or directory: the locked file is beside it, and only while it is written.

    Args:
        path: of the output; its directory must exist.

    Raises:
        UserError: another process or thread writes it, or nothing can be written beside it.
    """
    with _locked(path.with_name(f".{path.name}{LOCK_FILE}"), path, "use another output path."):
        yield


@contextmanager
def turn_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """As `output_lock`, but wait until the others have finished.

    Args:
        path: of the output; its directory must exist.
        waiting: called before a wait, if there is one.

    Raises:
        UserError: nothing can be written beside it.
    """
    with _locked(path.with_name(f".{path.name}{LOCK_FILE}"), path, "", waiting):
        yield


def refuse_locked(directory: Path, advice: str | None = None) -> None:
    """Change nothing; only refuse a directory that another process is writing.

    Args:
        directory: of a run or a pipeline.
        advice: as in `write_lock`.

    Raises:
        UserError: the directory is locked.
    """
    with suppress(OSError):  # nobody has locked it, or its file system has no locks
        handle = os.open(directory / LOCK_FILE, os.O_RDONLY)
        try:
            _lock(handle, directory, _of_run(directory) if advice is None else advice, exclusive=False)
        finally:
            os.close(handle)


def _of_run(directory: Path) -> str:
    return f"stop it and then resume the run: tunesmith train --resume {directory}"


@contextmanager
def _locked(path: Path, locked: Path, advice: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Lock the file at `path`, which stands for what is `locked`, and remove it at the end."""
    handle = _locked_file(path, locked, advice, waiting)
    if handle is None:
        yield
        return
    open_handles = [handle]
    os.register_at_fork(after_in_child=lambda: _close(open_handles))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: whoever opened it before sees this
        _close(open_handles)


def _locked_file(path: Path, locked: Path, advice: str, waiting: Callable[[], None] | None) -> int | None:
    """The open and locked file; None where its file system has no locks."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{locked} cannot be written: {error.strerror}.") from None
        try:
            if waiting is None:
                _lock(handle, locked, advice, exclusive=True)
            else:
                _wait(handle, waiting)
        except UserError:
            os.close(handle)
            raise
        except OSError as error:
            os.close(handle)
            path.unlink(missing_ok=True)
            logger.warning(
                "The file system of %s has no locks (%s): do not write it from a second process meanwhile.",
                locked,
                error.strerror,
            )
            return None
        if _is_open_as(path, handle):
            _sign(handle)
            return handle
        os.close(handle)  # the last owner removed it after we opened it


def _lock(handle: int, locked: Path, advice: str, exclusive: bool) -> None:
    """Lock the open file, without waiting for it. A lock that is not exclusive only fails if another one is.

    Raises:
        UserError: another process or thread has locked it.
        OSError: the file system has no locks.
    """
    try:
        _flock(handle, exclusive, waits=False)
    except BlockingIOError:
        owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
        raise UserError(
            f"{locked} is being written by {f'process {owner}' if owner else 'another process'}. Wait until that "
            f"has finished, or {advice}"
        ) from None


def _wait(handle: int, waiting: Callable[[], None]) -> None:
    """Lock the open file, and wait for it if another process or thread has locked it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        _flock(handle, exclusive=True, waits=False)
    except BlockingIOError:
        waiting()
        _flock(handle, exclusive=True, waits=True)


def _flock(handle: int, exclusive: bool, waits: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, "the system has no flock") from None

    fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if waits else fcntl.LOCK_NB))


def _sign(handle: int) -> None:
    """Name this process in the file. A full disk does not matter: the lock counts, not the name."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {platform.node()}\n".encode(), 0)


def _is_open_as(path: Path, handle: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def _close(handles: list[int]) -> None:
    """Close and forget them. In a forked child, whose copy would keep the lock after its parent's death; the parent's
    lock stays."""
    while handles:
        os.close(handles.pop())
