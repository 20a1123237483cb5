"""Building an index: only what changed is read, nothing is lost in a kill, readers see one version."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.errors import UserError
from tunesmith.retrieval import build, generation, pending
from tunesmith.retrieval.generation import Generation, current
from tunesmith.retrieval.search import Index
from tunesmith.run_lock import write_lock


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    directory = tmp_path / "documents"
    (directory / "deep").mkdir(parents=True)
    for name, text in {"a.md": "# A\n\nw1 w2 good", "b.txt": "w3 w4", "deep/c.html": "<p>w5 w6</p>"}.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def contents(path: Path) -> list[tuple[str, str]]:
    version = Index(path).version
    return [(version.chunk(number)["file"], version.chunk(number)["text"]) for number in range(len(version))]


def files(path: Path) -> dict[str, bytes]:
    """The current version's files, without when its documents changed."""
    version = current(path)
    assert version is not None
    found = {
        file.relative_to(version.directory).as_posix(): file.read_bytes() for file in version.directory.rglob("*.*")
    }
    del found["documents.jsonl"]
    return found


def test_what_is_new_is_read_what_is_gone_vanishes_and_the_rest_stays(
    documents: Path, tmp_path: Path, reading: Path
) -> None:
    encoder = str(reading / "vectors")
    first = tunesmith.index(documents, tmp_path / "i", encoder)
    assert (first.files, first.chunks, first.read, first.removed, first.unread) == (3, 3, 3, 0, {})
    assert tunesmith.index(documents, tmp_path / "i").read == 0
    (documents / "a.md").write_text("# A\n\nw1 film", encoding="utf-8")
    (documents / "b.txt").unlink()
    (documents / "d.md").write_text("w7", encoding="utf-8")
    shutil.copy(documents / "deep" / "c.html", documents / "e.html")
    again = tunesmith.index(documents, tmp_path / "i")
    assert (again.files, again.read, again.removed) == (4, 2, 1), "a copy is not read again"
    assert contents(tmp_path / "i") == [
        ("a.md", "w1 film"),
        ("d.md", "w7"),
        ("deep/c.html", "w5 w6"),
        ("e.html", "w5 w6"),
    ]
    tunesmith.index(documents, tmp_path / "new", encoder)
    assert files(tmp_path / "i") == files(tmp_path / "new")
    assert [path.name for path in (tmp_path / "i").glob("generation-*")] == ["generation-2"]


def test_only_the_files_whose_size_or_times_changed_are_opened(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "RECENT", -1)
    tunesmith.index(documents, tmp_path / "i", "none")
    opened: list[str] = []
    own = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or own(path))
    (documents / "b.txt").write_text("w3 w9", encoding="utf-8")
    assert tunesmith.index(documents, tmp_path / "i").read == 1
    assert opened == ["b.txt"]


def test_a_file_that_changes_within_the_clocks_tick_is_read(documents: Path, tmp_path: Path) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    assert {document.stamp for document, _ in Index(tmp_path / "i").version.documents()} == {()}
    before = (documents / "b.txt").stat()
    (documents / "b.txt").write_text("w9 w4", encoding="utf-8")
    os.utime(documents / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tunesmith.index(documents, tmp_path / "i").read == 1
    assert ("b.txt", "w9 w4") in contents(tmp_path / "i")


def test_other_settings_build_the_index_anew(documents: Path, tmp_path: Path, reading: Path) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    assert Index(tmp_path / "i").version.dense is None
    with_vectors = tunesmith.index(documents, tmp_path / "i", str(reading / "vectors"))
    assert (with_vectors.read, with_vectors.encoder) == (3, str(reading / "vectors"))
    assert Index(tmp_path / "i").version.dense is not None
    assert tunesmith.index(documents, tmp_path / "i", size=30).read == 3
    assert tunesmith.index(documents, tmp_path / "i").read == 0
    assert Index(tmp_path / "i").version.settings.size == 30


def test_what_could_not_be_read_is_named_and_tried_again(documents: Path, tmp_path: Path) -> None:
    (documents / "bad.txt").write_bytes(b"\xff\xff\xff")
    (documents / "image.png").write_bytes(b"png")
    (documents / ".hidden.md").write_text("hidden", encoding="utf-8")
    done = tunesmith.index(documents, tmp_path / "i", "none")
    assert set(done.unread) == {"bad.txt", "image.png"}
    assert done.unread["image.png"] == ".png: not a format that is read"
    assert Index(tmp_path / "i").version.unread == done.unread
    (documents / "bad.txt").write_text("good", encoding="utf-8")
    assert set(tunesmith.index(documents, tmp_path / "i").unread) == {"image.png"}


def test_an_index_inside_its_directory_does_not_index_itself(documents: Path) -> None:
    tunesmith.index(documents, documents / "index", "none")
    assert tunesmith.index(documents, documents / "index").files == 3


def test_what_is_no_index_or_has_no_documents_is_refused(documents: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        tunesmith.index(tmp_path / "none", tmp_path / "i")
    with pytest.raises(UserError, match="is a file; name the directory"):
        tunesmith.index(documents / "a.md", tmp_path / "i")
    with pytest.raises(UserError, match=r"exists and is not an index\. Choose another output"):
        tunesmith.index(documents, documents / "deep")
    with pytest.raises(UserError, match=r"--size 3 is too small"):
        tunesmith.index(documents, tmp_path / "i", "none", size=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no document that can be read"):
        tunesmith.index(tmp_path / "empty", tmp_path / "j", "none")
    (tmp_path / "i").mkdir(exist_ok=True)
    with write_lock(tmp_path / "i"), pytest.raises(UserError, match="is being written by"):
        tunesmith.index(documents, tmp_path / "i", "none")


def test_an_emptied_directory_makes_an_empty_index(documents: Path, tmp_path: Path) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    shutil.rmtree(documents)
    documents.mkdir()
    done = tunesmith.index(documents, tmp_path / "i")
    assert (done.files, done.chunks, done.removed) == (0, 0, 3)
    assert tunesmith.search(tmp_path / "i", "w1") == []


def killed(source: Path, path: Path, owner: Any, name: str, at_call: int) -> None:
    """Build an index in a process that is killed when a function is called for the n-th time."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    own, calls = getattr(owner, name), iter(range(1, 100))

    def killing(*args: Any) -> Any:
        if next(calls) == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*args)

    pending.SECONDS = 0.0
    setattr(owner, name, killing)
    tunesmith.index(source, path, "none")
    os._exit(0)


@pytest.mark.parametrize(
    ("owner", "name", "at_call", "read"),
    [
        pytest.param(pending.Pending, "flush", 1, 3, id="before the first segment"),
        pytest.param(pending.Pending, "flush", 3, 1, id="between segments"),
        pytest.param(pending, "write_lines", 2, 2, id="within a segment"),
        pytest.param(build, "publish", 1, 0, id="before the version"),
        pytest.param(generation, "write_full_text", 1, 0, id="within the version"),
        pytest.param(generation, "atomic_write", 1, 0, id="before the pointer"),
        pytest.param(pending.Pending, "remove", 1, 0, id="after the pointer"),
    ],
)
def test_a_killed_build_resumes_and_reads_nothing_twice(
    owner: Any, name: str, at_call: int, read: int, documents: Path, tmp_path: Path
) -> None:
    killed(documents, tmp_path / "i", owner, name, at_call)
    done = tunesmith.index(documents, tmp_path / "i", "none")
    assert (done.read, done.files) == (read, 3)
    tunesmith.index(documents, tmp_path / "new", "none")
    assert contents(tmp_path / "i") == contents(tmp_path / "new")
    assert not (tmp_path / "i" / "pending").exists()
    assert len(list((tmp_path / "i").glob("generation-*"))) == 1


def test_a_reader_keeps_its_version_while_a_writer_replaces_it(documents: Path, tmp_path: Path) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    reader = Index(tmp_path / "i")
    (documents / "a.md").write_text("film", encoding="utf-8")
    tunesmith.index(documents, tmp_path / "i")
    assert not reader.version.directory.exists()
    assert [hit.text for hit in reader.search("w1")] == ["w1 w2 good"]
    assert Index(tmp_path / "i").search("w1") == []


def test_a_reader_that_comes_while_the_version_is_replaced_takes_the_new_one(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    own, calls = Generation.__init__, []

    def late(self: Generation, directory: Path) -> None:
        calls.append(directory.name)
        if len(calls) == 1:
            directory.rename(directory.with_name("generation-7"))
            (tmp_path / "i" / "index.json").write_text('{"generation": 7}')
        own(self, directory)

    monkeypatch.setattr(Generation, "__init__", late)
    assert len(Index(tmp_path / "i").version) == 3
    assert calls == ["generation-1", "generation-7"]


def test_a_damaged_index_is_refused(documents: Path, tmp_path: Path) -> None:
    tunesmith.index(documents, tmp_path / "i", "none")
    (tmp_path / "i" / "generation-1" / "chunks.txt").unlink()
    with pytest.raises(UserError, match=r"is damaged: .*\. Delete it, and build it again\."):
        Index(tmp_path / "i")
    (tmp_path / "i" / "index.json").write_text("{}")
    with pytest.raises(UserError, match="is not that of an index"):
        Index(tmp_path / "i")


def test_an_encoder_that_changed_or_is_gone_is_refused(documents: Path, tmp_path: Path, reading: Path) -> None:
    own = tmp_path / "encoder"
    shutil.copytree(reading / "vectors", own)
    tunesmith.index(documents, tmp_path / "i", str(own))
    (own / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    with pytest.raises(UserError, match=r"has changed since .* was built\. Build it again: tunesmith index"):
        tunesmith.search(tmp_path / "i", "w1", mode="dense")
    assert tunesmith.index(documents, tmp_path / "i").read == 3
    shutil.rmtree(own)
    with pytest.raises(UserError, match=r"The encoder of .* cannot be used: .* Or search with --mode text\."):
        tunesmith.search(tmp_path / "i", "w1")
    assert tunesmith.search(tmp_path / "i", "w1", mode="text")


def test_progress_is_reported_only_by_a_build_that_takes_a_while(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, object]] = []
    tunesmith.index(documents, tmp_path / "i", "none", subscribers=[events.append])
    assert events == []
    monkeypatch.setattr(build, "PAUSE", 0.0)
    tunesmith.index(documents, tmp_path / "j", "none", subscribers=[events.append])
    assert [event["done"] for event in events] == [0, 1, 2, 3]
