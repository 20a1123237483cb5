"""How fast `tunesmith data check` is, what memory it needs, and how fast others find near-duplicates in the same rows.

    python benchmarks/data_check_speed.py --rows ../shared/data/gsm8k/train.jsonl --gigabytes 2

Makes chats of about 700 bytes from sentences of the given rows: 1 % of them copies, 2 % with one word changed.
Measures all default checks on the whole file: rate, processor time, the largest memory of all processes together with
and without the pages of files (data_check_memory.py measures how it grows), and how long the same file takes from the
cache. Then the rate of the peers on the first `--peer-megabytes` of the same rows, in an
environment of their own (requirements-duplicates.txt): datasketch with 128 permutations, signatures on all cores, and
datatrove's MinHash pipeline; and Tunesmith's on the same rows, with all checks and with near-duplicates alone. Writes
results/data_check_speed.{json,md}.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from stored_result import measure_and_store
from watched import run

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / "environments" / "duplicates"
PEERS = ("datasketch", "datatrove")
UNCOUNTED = ("datatrove",)
"""Whose workers are started by a server process: the system does not count their processor time as their parent's."""

NOT_SEEN = 10e6
"""Bytes of memory that no process of Python is below, unless it ended before it was looked at."""
ORIGINALS = 50_000
"""Rows that copies are made of."""


def make_rows(source: Path, path: Path, size: int) -> None:
    """Write rows until the file has `size` bytes."""
    draw = random.Random(0)
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    text = [f"{row['question']} {row['answer'].split('####')[0]}" for row in lines]
    sentences = [part for each in text for part in re.split(r"(?<=[.?!])\s", each) if len(part) > 10]
    kept: list[tuple[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        while size > 0:
            question, answer = (" ".join(draw.choices(sentences, k=count)) for count in (3, 6))
            kind = draw.random()
            if kept and kind < 0.03:
                question, answer = draw.choice(kept)
                words = answer.split()
                if kind > 0.01:
                    words[draw.randrange(len(words))] = "otherwise"
                answer = " ".join(words)
            elif len(kept) < ORIGINALS:
                kept.append((question, answer))
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            size -= file.write(json.dumps({"messages": chat}) + "\n")


def make_environment() -> None:
    """The peers' environment."""
    requirements = HERE / "requirements-duplicates.txt"
    made_from = ENVIRONMENT / "made-from.txt"
    if made_from.exists() and made_from.read_text() == requirements.read_text():
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    python = str(ENVIRONMENT / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
    made_from.write_text(requirements.read_text())


def first_bytes(source: Path, path: Path, size: int) -> Path:
    """Copy the first rows of a file, `size` bytes of them or one row more."""
    with source.open("rb") as rows, path.open("wb") as file:
        while size > 0 and (line := rows.readline()):
            size -= file.write(line)
    return path


def check(path: Path, cache: Path, *options: str, every: float = 1.0) -> dict[str, Any]:
    command = [sys.executable, "-m", "tunesmith", "data", "check", str(path), "--json", "--rows", "0", *options]
    return {"bytes": path.stat().st_size, **run(command, every, TUNESMITH_CACHE=str(cache))}


def measured(directory: Path, source: Path, size: int, peer_size: int) -> dict[str, Any]:
    rows = directory / "rows.jsonl"
    make_rows(source, rows, size)
    time.sleep(3)  # a file that was just written may still change
    found: dict[str, Any] = {"all checks": check(rows, directory / "cache")}
    found["from the cache"] = check(rows, directory / "cache", every=0.1)
    make_environment()
    few = first_bytes(rows, directory / "few.jsonl", peer_size)
    found["all checks, few rows"] = check(few, directory / "few-cache")
    found["near-duplicates, few rows"] = check(few, directory / "near-cache", "--only", "near_duplicates")
    for peer in PEERS:
        script = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "peers" / f"{peer}_duplicates.py")]
        found[peer] = {"bytes": few.stat().st_size, **run([*script, str(few), str(directory / peer)])}
    return found


def table_of(found: dict[str, Any]) -> str:
    lines = ["| | data | seconds | MB/s | processor seconds/MB | memory | anonymous |", "|---|---|---|---|---|---|---|"]
    names = {
        "all checks": "Tunesmith, all checks",
        "from the cache": "the same file again",
        "all checks, few rows": "Tunesmith, all checks",
        "near-duplicates, few rows": "Tunesmith, near-duplicates alone",
        **{peer: f"{peer}, near-duplicates" for peer in PEERS},
    }
    for key, name in names.items():
        each = found[key]
        rate = each["bytes"] / each["seconds"] / 1e6
        processor = "" if key in UNCOUNTED else f"{each['processor_seconds'] / each['bytes'] * 1e6:.3f}"
        seen = each["memory"] > NOT_SEEN
        memory, anonymous = (f"{each[of] / 1e9:.2f} GB" if seen else "" for of in ("memory", "anonymous"))
        lines.append(
            f"| {name} | {each['bytes'] / 1e6:,.0f} MB | {each['seconds']:.1f} | {rate:.2f} | "
            f"{processor} | {memory} | {anonymous} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--peer-megabytes", type=float, default=64)
    asked = parser.parse_args()
    sizes = (int(asked.gigabytes * 1e9), int(asked.peer_megabytes * 1e6))
    results = HERE / "results" / "data_check_speed.json"
    measure_and_store(results, lambda directory: measured(directory, asked.rows, *sizes), table_of)


if __name__ == "__main__":
    main()
