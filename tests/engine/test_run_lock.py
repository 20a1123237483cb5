"""Two processes never write one run directory; a process that ends in any way leaves no lock."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import typed

import tunesmith
from tunesmith.demo.recipe import new_directory
from tunesmith.errors import UserError
from tunesmith.run import PIPELINE_FILE
from tunesmith.run_lock import LOCK_FILE, output_lock, refuse_locked, write_lock

HOLD = """
import os, sys, time
from pathlib import Path
from tunesmith.run_lock import write_lock
with write_lock(Path(sys.argv[1])):
    if not (sys.argv[2] and os.fork()):  # the child, if there is one
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(directory: Path, fork: bool = False) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the directory's lock until it is killed, and the id of the child that it forks, or its
    own."""
    command = [sys.executable, "-c", HOLD, str(directory), "fork" if fork else ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def files_of(directory: Path) -> dict[str, bytes]:
    """The content of every file, by its path within the directory."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def unlocked(directory: Path) -> bool:
    try:
        with write_lock(directory):
            return True
    except UserError:
        return False


@pytest.fixture
def recipe(tiny_model: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    return {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(12)), "held_out": 0.0, "cache": False},
        "train": {"steps": 2, "checkpoint_every": 1, "tokens_per_step": 64, "precision": "fp32"},
    }


def killed_after_a_checkpoint(recipe: dict[str, Any], directory: Path) -> Path:
    """The directory of a run that ended after its first checkpoint."""

    class KilledError(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            raise KilledError

    with pytest.raises(KilledError):
        tunesmith.train(recipe, directory, subscribers=[stop])
    return directory


# Runs


def test_a_run_that_another_process_writes_is_refused_and_resumes_once_that_is_killed(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = killed_after_a_checkpoint(recipe, tmp_path / "run")
    with another_process(run) as (process, _):
        before = files_of(run)
        refused = typed("train", "--resume", str(run))
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert f"{run} is being written by process {process.pid} on " in refused.stderr
        assert f"stop it and then resume the run: tunesmith train --resume {run}" in refused.stderr
        with pytest.raises(UserError, match=f"is being written by process {process.pid} "):
            tunesmith.train(recipe, run)
        assert files_of(run) == before
        kill(process)  # by SIGKILL: nothing is cleaned up
        assert (run / LOCK_FILE).exists()
        assert tunesmith.resume(run).finished
    assert not (run / LOCK_FILE).exists()


def test_a_run_is_locked_from_its_first_file_to_its_last_event(recipe: dict[str, Any], tmp_path: Path) -> None:
    refused: list[str] = []
    again: list[Callable[[], object]] = [
        lambda: tunesmith.resume(tmp_path / "run"),
        lambda: tunesmith.train(recipe, tmp_path / "run"),
    ]

    def start_again(event: dict[str, Any]) -> None:
        if event["event"] in ("start", "end"):
            for start in again:
                with pytest.raises(UserError, match=f"is being written by process {os.getpid()} "):
                    start()
                refused.append(event["event"])

    run = tunesmith.train(recipe, tmp_path / "run", subscribers=[start_again])
    assert refused == ["start", "start", "end", "end"]
    assert not (run.directory / LOCK_FILE).exists()
    with pytest.raises(UserError, match="has finished"):
        tunesmith.resume(run.directory)


@pytest.mark.parametrize("part", ["", "1-s1", "2-s2"])
def test_a_pipeline_and_each_of_its_stages_are_locked(recipe: dict[str, Any], tmp_path: Path, part: str) -> None:
    recipe |= {"stages": [{"name": "s1", "method": "full"}, {"name": "s2"}]}
    directory = tmp_path / "pipeline"
    refused: list[str] = []

    def resume_again(event: dict[str, Any]) -> None:
        if event["event"] == "start" and event["run"].endswith(part):
            with pytest.raises(UserError, match="is being written by"):
                tunesmith.resume(directory / part)
            refused.append(event["run"])

    tunesmith.train(recipe, directory, subscribers=[resume_again])
    assert refused == [str(directory / stage) for stage in ("1-s1", "2-s2") if stage.endswith(part)]
    assert not list(directory.rglob(LOCK_FILE))


def test_a_pipeline_is_not_resumed_while_another_process_writes_it_or_its_stage(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe |= {"stages": [{"name": "s1"}, {"name": "s2"}]}
    directory = killed_after_a_checkpoint(recipe, tmp_path / "pipeline")
    assert (directory / PIPELINE_FILE).exists()
    for locked in (directory, directory / "1-s1"):
        with write_lock(locked), pytest.raises(UserError, match=f"^{locked} is being written by"):
            tunesmith.resume(directory)
    assert tunesmith.resume(directory).directory == directory / "2-s2"


# The lock


def test_a_child_that_was_forked_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    with another_process(tmp_path, fork=True) as (process, child):
        try:
            assert not unlocked(tmp_path)
            kill(process)
            os.kill(child, 0)  # the child is alive
            assert unlocked(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_lock_counts_and_not_the_process_id_in_its_file(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(f"{os.getppid()} on this machine, which is alive\n", encoding="utf-8")
    refuse_locked(tmp_path)
    with write_lock(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text(encoding="utf-8").startswith(f"{os.getpid()} on ")
        (tmp_path / LOCK_FILE).write_text("", encoding="utf-8")
        with pytest.raises(UserError, match="is being written by another process"):
            refuse_locked(tmp_path)
        assert not unlocked(tmp_path)
    assert unlocked(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_file_that_its_owner_removes_is_not_the_lock_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    plain_open = os.open

    def open_as_the_owner_ends(path: Path, *arguments: Any) -> int:
        handle = plain_open(path, *arguments)
        opened.append(path)
        if len(opened) == 1:
            Path(path).unlink()
        return handle

    monkeypatch.setattr(os, "open", open_as_the_owner_ends)
    with write_lock(tmp_path):
        monkeypatch.undo()
        assert len(opened) == 2
        assert not unlocked(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_leads_to_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    refuse_locked(tmp_path)
    with caplog.at_level(logging.WARNING, "tunesmith"), write_lock(tmp_path):
        assert not (tmp_path / LOCK_FILE).exists()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"The file system of {tmp_path} has no locks ({os.strerror(code)}): "
        "do not write it from a second process meanwhile."
    )


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file or directory"), write_lock(tmp_path / "none"):
        pass
    refuse_locked(tmp_path / "none")


def test_an_error_within_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_lock(tmp_path):
        raise KeyboardInterrupt
    assert unlocked(tmp_path)


# Other outputs


def test_two_outputs_in_one_directory_are_locked_apart(tmp_path: Path) -> None:
    with output_lock(tmp_path / "a.jsonl"), output_lock(tmp_path / "b.jsonl"):
        with (
            pytest.raises(UserError, match=r"a\.jsonl is being written by process .* or use another output path\.$"),
            output_lock(tmp_path / "a.jsonl"),
        ):
            pass
        assert unlocked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_demos_never_write_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_directory(None) as first, new_directory(None) as second:
        assert (first, second) == (Path("runs/demo"), Path("runs/demo-2"))
        refused = typed("demo", "--directory", str(first))
        assert refused.returncode == 2
        assert refused.stderr.endswith("or choose another one with --directory.\n")
        assert f"{first} is being written by process {os.getpid()}" in refused.stderr
    assert not (first / LOCK_FILE).exists()
    (first / "note.txt").touch()
    with pytest.raises(UserError, match="exists and is not an empty directory"), new_directory(first):
        pass
    with pytest.raises(UserError, match="exists and is not an empty directory"), new_directory(first / "note.txt"):
        pass
    with pytest.raises(UserError, match="cannot be created: Not a directory"), new_directory(first / "note.txt" / "in"):
        pass
