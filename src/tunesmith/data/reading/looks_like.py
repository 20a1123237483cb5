"""What a file with an unknown extension looks like, from its beginning: what to name it, and what to do."""

import json
from pathlib import Path

START = 1 << 22
"""Bytes that are looked at."""

_SIGNATURES = {
    b"%PDF-": "a PDF: name it .pdf",
    b"PK\x03\x04": "a ZIP archive or an office file: name it .docx, .pptx or .xlsx if it is one, else unpack it",
    b"PAR1": "Parquet: name it .parquet",
    b"\x1f\x8b": "gzip: name it .gz, after the extension of what is in it (.jsonl.gz)",
    b"\x28\xb5\x2f\xfd": "zstd: name it .zst, after the extension of what is in it (.jsonl.zst)",
    b"ARROW1": "Arrow: save it as Parquet",
    b"SQLite format 3": "an SQLite database: write sqlite:///PATH#SELECT …",
    b"BZh": "bzip2: unpack it first, or pack it with gzip",
    b"\xfd7zXZ": "xz: unpack it first, or pack it with gzip",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}


def looks_like(path: Path) -> str:
    """A sentence: what the file looks like and what to name it; empty if that cannot be seen.

    Args:
        path: of a file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START)
    except OSError:
        return ""
    found = next((what for mark, what in _SIGNATURES.items() if start.startswith(mark)), None)
    if found is None and b"\0" not in start and start.strip():
        found = _text(start, path)
    return f"It looks like {found}." if found else ""


def _text(start: bytes, path: Path) -> str:
    lines = start.splitlines()
    whole = lines[:-1] if len(start) == START and len(lines) > 1 else lines
    try:
        b"\n".join(whole).decode("utf-8")
    except UnicodeDecodeError:
        name = path.name
        return (
            "text in Latin-1 or another encoding that is not UTF-8: make a copy in UTF-8 with a known extension "
            f"(iconv -f latin1 -t utf-8 {name} > {name}.txt)"
        )
    kind = _json(whole) or _delimited(whole)
    return kind or f"{len(whole):,}{' or more' if len(start) == START else ''} lines of text: name it .txt"


def _json(lines: list[bytes]) -> str | None:
    first = next((line for line in lines if line.strip()), b"")
    try:
        if isinstance(json.loads(first), dict):
            return "JSON with one object per line: name it .jsonl"
    except (ValueError, RecursionError):
        pass
    return "JSON: name it .json" if first.lstrip()[:1] in (b"{", b"[") else None


def _delimited(lines: list[bytes]) -> str | None:
    """Columns, if the first lines have the same number of tabs or commas."""
    some = [line for line in lines[:10] if line.strip()]
    for delimiter, what in ((b"\t", "columns with tabs: name it .tsv"), (b",", "columns with commas: name it .csv")):
        counts = {line.count(delimiter) for line in some}
        if len(some) > 2 and len(counts) == 1 and counts != {0}:
            return what
    return None
