"""Write a model as a GGUF file, one tensor at a time."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.exporting.gguf_family import Layout
from tunesmith.exporting.gguf_mix import MIXES, Mix, TensorPosition, block_of
from tunesmith.exporting.gguf_quantizer import BY_GGUF, bytes_of, quantize, require_llama_cpp
from tunesmith.exporting.gguf_tokenizer import write_tokenizer
from tunesmith.exporting.subject import Subject
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.run import Events, atomic_file

Importance = Mapping[str, NDArray[np.float32]]
"""By the name of a matrix in GGUF: (columns,) the mean square of each column's input."""

_POOLING = {"mean": gguf.PoolingType.MEAN, "first": gguf.PoolingType.CLS, "last": gguf.PoolingType.LAST}
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
"""transformers' names of defaults for generation, and GGUF's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to write.

    Attributes:
        name: in GGUF.
        source: the name in transformers; None for one that is computed from the config.
        shape: in transformers.
        read: gives the values, in transformers' order.
        kind: that it is stored in.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    kind: Kind


def write_model(path: Path, subject: Subject, mix: str, importance: Importance | None, events: Events) -> None:
    """Write a GGUF file, completely or not at all.

    Args:
        path: of the file.
        subject: what to write: a model that generates text, or one that embeds it.
        mix: in which numbers, a key of `MIXES`.
        importance: what errors of quantization are weighted by. Default: all inputs weigh the same.
        events: receives `progress`, in millions of weights.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, or the mix needs what is not there.
    """
    layout = layout_of(subject)
    check_mix(mix, importance is not None)
    tensors = list(_tensors(subject, layout, MIXES[mix], importance))
    with atomic_file(path) as file, opened(file, layout) as writer:
        _write_metadata(writer, subject, layout, MIXES[mix])
        for tensor in tensors:
            shape = tuple(layout.values(tensor.source or "", torch.empty(tensor.shape, device="meta")).shape)
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.float32), bytes_of(shape, tensor.kind), raw_dtype=tensor.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(math.prod(tensor.shape) for tensor in tensors)
        for tensor in tensors:
            values = layout.values(tensor.source or "", tensor.read().float()).contiguous().numpy()
            writer.write_tensor_data(quantize(values, tensor.kind, (importance or {}).get(tensor.name)))
            done += values.size
            events.emit("progress", what="gguf, million weights", done=-(-done // 10**6), total=-(-total // 10**6))


def layout_of(subject: Subject) -> Layout:
    """How llama.cpp stores the model.

    Raises:
        UserError: it cannot, or the model neither generates nor embeds text.
    """
    head = subject.reference.head
    is_embedding = isinstance(head, EmbeddingHead) and subject.reference.classifier() is None
    if not head.generates_text and not is_embedding:
        raise UserError(
            f"{subject.name} cannot become a GGUF file: llama.cpp has no head of the kind {head.kind}. Export it to hf."
        )
    return Layout.of(subject.model.config, subject.model.base_model_prefix)


def check_mix(mix: str, has_importance: bool) -> None:
    """Raises:
    UserError: there is no such mix, or it needs llama.cpp's quantizer or an importance matrix that is not there.
    """
    if mix not in MIXES:
        raise UserError(f"--to gguf:{mix} does not exist. Use one of {', '.join(MIXES)}.")
    if MIXES[mix].needs_importance and not has_importance:
        raise UserError(
            f"--to gguf:{mix} needs an importance matrix, or its answers would be nonsense. Add --importance-rows 64, "
            "or use iq4_xs, q3_k_m or q2_k."
        )
    if MIXES[mix].most not in BY_GGUF or has_importance:
        require_llama_cpp(f"--to gguf:{mix}" + (" with an importance matrix" if has_importance else ""))


@contextmanager
def opened(path: Path, layout: Layout) -> Iterator[GGUFWriter]:
    """A writer of that file, closed at the end."""
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    writer = GGUFWriter(path, layout.architecture)
    try:
        yield writer
    finally:
        writer.close()


def _tensors(subject: Subject, layout: Layout, mix: Mix, importance: Importance | None) -> Iterator[Stored]:
    """What the file contains, with the kind of each tensor."""
    queries, keys = layout.heads
    weights = subject.weights
    is_tied = "lm_head.weight" not in weights or layout.is_tied
    for name, values in layout.more_tensors():
        yield Stored(name, None, tuple(values.shape), partial(torch.Tensor.detach, values), Kind.F32)
    for source in weights:
        target = layout.name(source)
        if target is None:
            continue
        shape = weights.shape(source)
        position = TensorPosition(block_of(target) or 0, layout.blocks, queries // keys >= 4, importance is not None)
        kind = Kind.F32 if len(shape) < 2 else mix.kind(target, shape[-1], position, is_tied)
        yield Stored(target, source, shape, partial(weights.__getitem__, source), kind)


def _write_metadata(writer: GGUFWriter, subject: Subject, layout: Layout, mix: Mix) -> None:
    write_origin(writer, subject)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(mix.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    layout.write_settings(writer)
    head = subject.reference.head
    if isinstance(head, EmbeddingHead):
        writer.add_pooling_type(_POOLING[head.pooling])
    write_tokenizer(writer, subject.tokenizer, layout.config.vocab_size, subject.ends)
    _write_sampling(writer, subject)


def write_origin(writer: GGUFWriter, subject: Subject) -> None:
    """Write where the model comes from: its name, its base, its license and its data."""
    writer.add_name(subject.title)
    writer.add_quantized_by(f"Tunesmith {version('tunesmith')}")
    if subject.license is not None:
        writer.add_license(subject.license)
    if subject.run is not None:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, subject.base_name)
        writer.add_dataset_count(len(subject.data))
        for index, (name, digest) in enumerate(subject.data.items()):
            writer.add_dataset_name(index, Path(name).name)
            writer.add_dataset_version(index, digest)


def _write_sampling(writer: GGUFWriter, subject: Subject) -> None:
    """Write the defaults for generation that were set."""
    config = subject.generation
    given: dict[str, Any] = {} if config is None else config.to_diff_dict()
    if config is None or not config.do_sample:
        given = {name: value for name, value in given.items() if name not in _SAMPLING}
    for name, key in _SAMPLING.items():
        if given.get(name) is not None:
            getattr(writer, f"add_sampling_{key}")(given[name])
    if given.get("repetition_penalty") not in (None, 1.0):
        writer.add_sampling_penalty_repeat(given["repetition_penalty"])
