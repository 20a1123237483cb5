"""A model as a GGUF file, to be evaluated beside its other forms."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tunesmith.cache_directory import cache_directory
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.exporting.export import export
from tunesmith.inference.model_reference import ModelReference, fingerprint_of
from tunesmith.inference.result_cache import digest_of
from tunesmith.run import Subscriber, cached_directory


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
    file = f"{kind}.gguf"

    def write(directory: Path) -> None:
        export(name, directory / file, f"gguf:{kind}", subscribers=subscribers)

    return cached_directory(cache_directory() / "exports" / digest, write) / file
