"""Search in a million chunks: time and memory of a query, and of the index.

    tunesmith bases get all-minilm-l6-v2
    python benchmarks/retrieval_speed.py     # writes results/retrieval_speed.json and .md; finished steps are kept

Documents are Python's standard library and, where they are, the texts of TUNESMITH_DATA. The rates are those of
`tunesmith index` on them. A million chunks are these documents' chunks again and again, each with a word of its own.
Encoding a million texts takes hours on two cores, so their vectors are those of 1,000 real chunks, each turned by a
random direction of half its length, and the question's is real. Each step is a process of its own, whose peak memory
counts mapped files too. Processor time is stated beside wall time: other work on the machine changes it little.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stored_result import store

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "retrieval_speed.json"
WORK = Path(tempfile.gettempdir()) / "retrieval_speed"
ENCODER = "all-minilm-l6-v2"
TEXTS = ("wikitext2/valid.txt", "wikitext2/test.txt", "tinyshakespeare/input.txt", "formats/wiki_demo.txt")
ENCODED_MB = 0.3
VECTORS, WORDS = 1000, 60
"""Chunks that are encoded for the million, by their first words."""

LONGEST = 2500
"""Bytes of a chunk as stored, that is repeated."""

CHUNKS = 1_000_000
DOCUMENTS = 1000
QUESTIONS = (
    "How do I open a file and read it line by line?",
    "What happens when a thread is joined twice?",
    "convert a date to the number of seconds since the epoch",
    "Where is the list of all warnings that a module can emit?",
    "Who was the king in the play, and what did he say to the queen?",
    "the history of the city in the nineteenth century",
    "How can I send an e-mail with an attachment to several people?",
    "parse command line arguments with a default value",
    "Why does the garbage collector not free an object that has a reference to itself?",
    "compress bytes zlib level",
    "What is the difference between a process and a thread, and which of them should I use?",
    "a song from the album that was released by the band in the summer",
    "socket timeout",
    "How do I compare two sequences and print the lines in which they differ?",
    "If the name is not found in the module, is it looked for in the package that it is in?",
    "random sample without replacement",
)
REPEATS = 4
K = 10
STEPS = ("rate", "encoded", "million", "text", "dense", "weighted", "bm25s", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=STEPS, help="do one step in this process, and print what was measured")
    step = parser.parse_args().step
    WORK.mkdir(exist_ok=True)
    if step is not None:
        result = {"rate": rate, "encoded": encoded, "million": million}.get(step, lambda: queries(step))()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**result, "peak_bytes": peak, "load": os.getloadavg()[0]}))
        return
    found = {name: finished(name) for name in STEPS}
    size = sum(file.stat().st_size for file in (WORK / "million").rglob("*") if file.is_file())
    store(
        RESULTS, {"chunks": CHUNKS, "questions": len(QUESTIONS) * REPEATS, "index_bytes": size, **found}, table(found)
    )


def finished(step: str) -> dict[str, Any]:
    """A step's result; it is done now if it was not before."""
    file = WORK / f"{step}.json"
    if not file.exists():
        print(f"{step} …", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, __file__, "--step", step], check=True, stdout=subprocess.PIPE, text=True)
        file.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def documents() -> Path:
    """A directory with the documents."""
    directory = WORK / "documents"
    if not directory.exists():
        new = WORK / "documents.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        library = Path(sysconfig.get_paths()["stdlib"])
        for file in sorted(library.rglob("*.py")):
            if not {"site-packages", "test", "tests", "lib2to3"} & set(file.parts):
                shutil.copy(file, new / "-".join(file.relative_to(library).parts))
        for name in TEXTS:
            if (DATA / name).exists():
                shutil.copy(DATA / name, new / name.replace("/", "-"))
        new.rename(directory)
    return directory


def rate() -> dict[str, Any]:
    """`tunesmith index` without an encoder."""
    return indexed(documents(), "none", "index-text")


def encoded() -> dict[str, Any]:
    """`tunesmith index` with the encoder, on few documents."""
    few, used = WORK / "few", 0.0
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    for file in sorted(documents().iterdir(), key=lambda file: file.name[::-1]):
        if used < ENCODED_MB and file.stat().st_size < 40_000:
            shutil.copy(file, few)
            used += file.stat().st_size / 1e6
    return indexed(few, ENCODER, "index-encoded")


def indexed(source: Path, encoder: str, name: str) -> dict[str, Any]:
    """How long an index takes."""
    import tunesmith

    path = WORK / name
    shutil.rmtree(path, ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    done = tunesmith.index(source, path, encoder)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return {"bytes": done.bytes, "chunks": done.chunks, "seconds": seconds, "cpu_seconds": cpu_seconds}


class Repeated:
    """The chunks of the documents again and again, each with a word of its own."""

    def __init__(self) -> None:
        from tunesmith.retrieval.encoder import Encoder
        from tunesmith.retrieval.generation import current

        source = current(WORK / "index-text")
        assert source is not None
        self._source, self.texts = source, self
        sizes = np.array([len(source.texts[number]) for number in range(len(source))])
        self._numbers = np.flatnonzero(sizes <= LONGEST).tolist()  # the largest are whole functions
        texts = [json.loads(self[number])["text"] for number in range(VECTORS)]
        self._vectors = Encoder(ENCODER).chunks([" ".join(text.split()[:WORDS]) for text in texts])
        self.hidden = self._vectors.shape[1]

    def __getitem__(self, number: int) -> bytes:
        record = self._source.texts[self._numbers[number % len(self._numbers)]]
        begin = len(b'{"text": "')
        return record[:begin] + f"chunk{number} ".encode() + record[begin:]

    def release(self) -> None:
        self._source.texts.release()

    def rows(self, first: int, count: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        draw = np.random.default_rng(first)
        rows = self._vectors[np.arange(first, first + count) % len(self._vectors)]
        directions = draw.standard_normal(rows.shape, np.float32)
        rows = rows + 0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        scaled: np.ndarray[Any, np.dtype[np.float32]] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return scaled


def million() -> dict[str, Any]:
    """Write the index of a million chunks."""
    from tunesmith.retrieval.encoder import Encoder
    from tunesmith.retrieval.generation import Document, Origin, Settings, publish

    path = WORK / "million"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    repeated, each = Repeated(), CHUNKS // DOCUMENTS
    located = [
        (Document(f"part-{n:04}.txt", f"part-{n}", ()), Origin(repeated, n * each, each)) for n in range(DOCUMENTS)
    ]
    settings = Settings(200, ENCODER, Encoder(ENCODER).fingerprint)
    began, cpu = time.perf_counter(), time.process_time()
    version = publish(path, settings, WORK, {}, located)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    size = (version.directory / "chunks.txt").stat().st_size
    return {"bytes": size, "chunks": len(version), "seconds": seconds, "cpu_seconds": cpu_seconds}


def queries(way: str) -> dict[str, Any]:
    """The time of each question, after one round that reads the files."""
    search = {"bm25s": bm25s_search, "numpy": numpy_search}.get(way, lambda: own_search(way))()
    for question in QUESTIONS:
        search(question)
    walls, cpus = [], []
    for question in QUESTIONS * REPEATS:
        began, cpu = time.perf_counter(), time.process_time()
        search(question)
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu)
    return {
        name: {"p50": float(np.quantile(values, 0.5)), "p95": float(np.quantile(values, 0.95))}
        for name, values in (("wall", walls), ("cpu", cpus))
    }


def own_search(way: str) -> Callable[[str], object]:
    """Ours, with the question's encoding."""
    from tunesmith.retrieval.search import Index

    index = Index(WORK / "million")
    return lambda question: index.search(question, K, way)


def bm25s_search() -> Callable[[str], object]:
    """bm25s on the same entries."""
    import bm25s

    from tunesmith.retrieval.full_text import words_of
    from tunesmith.retrieval.generation import current

    version = current(WORK / "million")
    assert version is not None
    words, directory = version.full_text.words, version.directory / "words"
    data, indices, starts = (
        np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("scores", "chunks", "starts")
    )
    search = bm25s.BM25()
    search.nonoccurrence_array = None
    search.vocab_dict = {words[number].decode(): number for number in range(len(words))}
    search.scores = {"data": data, "indices": indices, "indptr": np.array(starts), "num_docs": len(version)}

    def found(question: str) -> object:
        known = [word for word in words_of(question) if word in search.vocab_dict]
        return search.retrieve([known], k=K, show_progress=False)

    return found


def numpy_search() -> Callable[[str], object]:
    """The product of all vectors with the question's, by numpy, with the question's encoding."""
    from tunesmith.retrieval.encoder import Encoder
    from tunesmith.retrieval.generation import current

    version = current(WORK / "million")
    assert version is not None
    assert version.dense is not None
    vectors, encoder = version.dense.vectors, Encoder(ENCODER)

    def found(question: str) -> object:
        cosines = vectors @ encoder.question(question)
        first = np.argpartition(-cosines, K)[:K]
        return first[np.argsort(-cosines[first])]

    return found


def rows_of(found: dict[str, Any]) -> Iterator[str]:
    names = {
        "text": "`text`", "dense": "`dense`", "weighted": "`weighted`", "bm25s": "bm25s, the same entries",
        "numpy": "numpy, all vectors in fp32",
    }  # fmt: skip
    for step, name in names.items():
        wall, cpu = found[step]["wall"], found[step]["cpu"]
        times = " | ".join(f"{1000 * each[q]:,.0f} ms" for each in (wall, cpu) for q in ("p50", "p95"))
        yield f"| {name} | {times} | {found[step]['peak_bytes'] / 1e9:.1f} GB |"


def table(found: dict[str, Any]) -> str:
    """Times and memory of queries, and of the index."""
    lines = [
        "| a query at 1,000,000 chunks | p50 | p95 | processor, p50 | p95 | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
        *rows_of(found),
        "",
        "| index | MB | chunks | MB/s | MB/s of processor time | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    names = {
        "rate": "`tunesmith index`, full text", "encoded": "`tunesmith index`, with MiniLM",
        "million": "a million chunks, read and encoded before",
    }  # fmt: skip
    for step, name in names.items():
        part = found[step]
        mb = part["bytes"] / 1e6
        lines.append(
            f"| {name} | {mb:,.1f} | {part['chunks']:,} | {mb / part['seconds']:.2g} | "
            f"{mb / part['cpu_seconds']:.2g} | "
            f"{part['peak_bytes'] / 1e9:.1f} GB |"
        )
    loads = [found[step]["load"] for step in STEPS]
    lines += ["", f"Other work ran at the same time: load {min(loads):.0f} to {max(loads):.0f}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
