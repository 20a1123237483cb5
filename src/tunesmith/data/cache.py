"""A cache of tokenized rows. The key covers everything that decides the tokens, so a stale hit is impossible.

The key covers the bytes of the data files and their names, the tokenizer with its template, the recipe's data section
and objective, the source code of this package's data path, objectives and heads, and the versions of the libraries that
render and tokenize.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.tokens import Completions, TokenTable

logger = logging.getLogger(__name__)

_ARRAYS = ("ids", "loss_mask", "offsets", "file", "row")
_TARGET_ARRAYS = ("targets", "target_offsets")
"""Only tables with targets have them."""
_COMPLETION_ARRAYS = ("offsets", "lengths", "scores")
"""Of `Completions`; only tables with completions have them. What a model says of them is not part of the tokens."""


def cache_key(fingerprints: dict[str, str], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> str:
    """SHA-256 over everything that decides the tokens.

    Args:
        fingerprints: SHA-256 of each data file by name.
        tokenizer: with its vocabulary, special tokens and chat template.
        settings: the recipe's data section and objective.
    """
    parts = {
        "data": fingerprints,
        **_parts_of(tokenizer),
        "settings": settings,
        "code": _code_fingerprint(),
        "versions": {name: version(name) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of its vocabulary, special tokens and chat template.

    Take it before the first use of the tokenizer: use can change its truncation and padding.
    """
    return hashlib.sha256(json.dumps(_parts_of(tokenizer), sort_keys=True, default=str).encode()).hexdigest()


def _parts_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return {
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }


def _code_fingerprint() -> str:
    """SHA-256 of the source of what makes token tables: the data path, objectives (rendering), heads (truncation), and
    what the last two inherit."""
    package = Path(__file__).parent.parent
    files = [file for room in ("data", "heads", "objectives") for file in (package / room).rglob("*.py")]
    files += [package / "config" / f"{name}.py" for name in ("head", "mix", "objective", "registry")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()


def save(directory: Path, tables: Iterable[tuple[str, TokenTable]], report: dict[str, Any]) -> None:
    """Write the named tables and the report atomically: `directory` appears complete or not at all."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".partial-"))
    try:
        files, source_rows = {}, {}
        for name, table in tables:
            files[name], source_rows[name] = table.files, table.source_rows
            for array in (*_ARRAYS, *(_TARGET_ARRAYS if table.targets is not None else ())):
                np.save(partial / f"{name}.{array}.npy", getattr(table, array), allow_pickle=False)
            for array in _COMPLETION_ARRAYS if table.completions is not None else ():
                file = partial / f"{name}.completions.{array}.npy"
                np.save(file, getattr(table.completions, array), allow_pickle=False)
        stored = {"files": files, "source_rows": source_rows, "report": report}
        (partial / "report.json").write_text(json.dumps(stored), encoding="utf-8")
        if not directory.exists():
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(directory: Path, names: Iterable[str]) -> tuple[list[TokenTable], dict[str, Any]] | None:
    """The tables (memory-mapped) and the report; None if there is no entry. A broken one is removed, with a warning."""
    if not directory.exists():
        return None
    try:
        stored = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        tables = []
        for name in names:
            arrays = {
                array: np.load(directory / f"{name}.{array}.npy", mmap_mode="r", allow_pickle=False)
                for array in (*_ARRAYS, *_TARGET_ARRAYS)
                if array in _ARRAYS or (directory / f"{name}.{array}.npy").exists()
            }
            files = tuple(stored["files"][name])
            rows = tuple(stored["source_rows"][name])
            completions = _completions(directory, name)
            tables.append(TokenTable(files=files, **arrays, completions=completions, source_rows=rows))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        logger.warning("%s is broken (%s). The rows are tokenized again.", directory, reason or type(error).__name__)
        shutil.rmtree(directory, ignore_errors=True)
        return None
    return tables, stored["report"]


def _completions(directory: Path, name: str) -> Completions | None:
    if not (directory / f"{name}.completions.offsets.npy").exists():
        return None
    arrays = {
        array: np.load(directory / f"{name}.completions.{array}.npy", allow_pickle=False)
        for array in _COMPLETION_ARRAYS
    }
    return Completions(**arrays, reference=np.full(len(arrays["scores"]), np.nan, np.float32))
