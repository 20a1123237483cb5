"""A model as a GGUF file, to be evaluated beside its other forms."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from tunesmith.cache_directory import cache_directory
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.errors import UserError
from tunesmith.evaluation.result_cache import digest_of
from tunesmith.exporting.export import export
from tunesmith.inference.model_reference import ModelReference, fingerprint_of
from tunesmith.run import Subscriber, atomic_directory


def gguf_form(name: str, kind: str, subscribers: Sequence[Subscriber] = ()) -> Path:
    """A model's GGUF file, exported on first use and kept in the user's cache.

    Args:
        name: a run, an adapter, a model directory or a name of a base.
        kind: of the file, such as `q8_0`.
        subscribers: receive `progress` while it is written.

    Returns:
        The file.

    Raises:
        UserError: the model cannot be exported to this kind, or the cache cannot be written.
    """
    tokenizer = tokenizer_fingerprint(ModelReference.find(name).tokenizer())
    digest = digest_of([fingerprint_of(name), tokenizer, kind, version("tunesmith")])
    directory = cache_directory() / "exports" / digest
    file = directory / f"{kind}.gguf"
    if file.exists():
        return file
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f"{digest}.lock")):
            if not file.exists():  # another process may have made it while this one waited
                with atomic_directory(directory) as partial:
                    export(name, partial / file.name, f"gguf:{kind}", subscribers=subscribers)
    except OSError as error:
        raise UserError(
            f"{directory.parent} cannot be written: {error.strerror}. Set TUNESMITH_CACHE to another directory."
        ) from None
    return file
