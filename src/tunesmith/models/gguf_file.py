"""The parts of a GGUF file: its metadata, its vocabulary and its tensors, and why a file cannot be read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize

from tunesmith.errors import UserError

_TOKENS = "tokenizer.ggml.tokens"
_SCALAR_BYTES = {kind: np.dtype(dtype).itemsize for kind, dtype in GGUFReader.gguf_scalar_to_np.items()}


class GgufFile(GGUFReader):
    """gguf's reader, with an array as one view of its bytes: a view for each entry of a vocabulary takes 9 s.

    Attributes:
        path: the file.
        tensors: name, kind and memory-mapped data of each tensor.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data: Any = self.data
        item, count = struct.unpack_from("<IQ", data, orig_offs)
        size = 12 + _array_bytes(data, orig_offs + 12, GGUFValueType(item), count)
        types = [GGUFValueType.ARRAY, GGUFValueType(item)]
        return size, [self.data[orig_offs : orig_offs + size]], [], types

    @property
    def architecture(self) -> str:
        """gguf's name of the model's family."""
        return str(self.value("general.architecture"))

    def value(self, key: str) -> Any:
        """The number or string under this key of the metadata, or None."""
        field = self.get_field(key)
        if field is None or field.types[0] == GGUFValueType.ARRAY:
            return None
        if field.types[0] == GGUFValueType.STRING:
            return field.parts[-1].tobytes().decode(errors="replace")
        return field.contents()

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the tokenizer has."""
        data: Any = self.fields[_TOKENS].parts[-1]
        return int(struct.unpack_from("<IQ", data)[1])

    def tensor(self, name: str) -> npt.NDArray[np.float32] | None:
        """The tensor of this name, dequantized, or None."""
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        return None if found is None else dequantize(found.data, found.tensor_type)

    @property
    def kinds(self) -> Counter[str]:
        """How many tensors are stored in each kind, such as Q4_K; the most frequent kind first."""
        counts = Counter(tensor.tensor_type.name for tensor in self.tensors)
        return Counter(dict(counts.most_common()))

    @property
    def bits_per_weight(self) -> float:
        """The mean over all weights, scales included."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / sum(tensor.n_elements for tensor in self.tensors)

    def write_vocabulary(self, path: Path) -> None:
        """Write a GGUF file with all metadata and no tensors."""
        self._write(path, list(self._entries().values()), [])

    def write_outline(self, path: Path) -> None:
        """Write a GGUF file with the names of the tensors, whose one value is 0, and the metadata without vocabulary.

        transformers reads the config from it, which looks at no weights. Its reader takes 9 s for a vocabulary.
        """
        entries = self._entries()
        kept = [entry for key, entry in entries.items() if not self._is_vocabulary(key)]
        self._write(path, [*kept, _one_token()], [tensor.name for tensor in self.tensors])

    def _write(self, path: Path, entries: Sequence[bytes], tensors: Sequence[str]) -> None:
        """Write a GGUF file, in which all tensors are the same zero."""
        table = [_string(name) + struct.pack("<IQIQ", 1, 1, GGMLQuantizationType.F32, 0) for name in tensors]
        header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join((*entries, *table))
        path.write_bytes(header + bytes(-len(header) % int(self.alignment)) + bytes(4))

    def _entries(self) -> dict[str, bytes]:
        """The bytes of each entry of the metadata by key."""
        fields = [field for key, field in self.fields.items() if not key.startswith("GGUF.")]
        return {field.name: b"".join(part.tobytes() for part in field.parts) for field in fields}

    def _is_vocabulary(self, key: str) -> bool:
        return key.startswith("tokenizer.") and self.fields[key].types[0] == GGUFValueType.ARRAY


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file's metadata and its table of tensors.

    Args:
        path: a file in GGUF version 2 or 3, little-endian.

    Returns:
        The file, whose tensors are read when they are used.

    Raises:
        UserError: the file does not exist, is not a GGUF file, is broken, is one part of several, has no tokenizer, or
            has a tensor of a kind that cannot be dequantized.
    """
    try:
        with path.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give the path of a GGUF file.") from None
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it does not start with GGUF. Give another file.")
    try:
        file = GgufFile(path)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise UserError(
            f"{path} cannot be read: it is truncated or broken, or in a newer format ({error}). Download it again."
        ) from None
    _check(file)
    return file


def _check(file: GgufFile) -> None:
    """Refuse what cannot be converted before anything is."""
    if file.byte_order != "I":
        raise UserError(f"{file.path} is big-endian. Convert it first: gguf-convert-endian {file.path} little")
    if (file.value("split.count") or 1) > 1 or re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", file.path.name):
        raise UserError(
            f"{file.path} is one part of a split GGUF. Merge the parts first: "
            f"llama-gguf-split --merge {file.path} merged.gguf, with the first part."
        )
    if file.get_field("general.architecture") is None:
        raise UserError(f"{file.path} has no general.architecture in its metadata. Give the GGUF file of a model.")
    if file.get_field(_TOKENS) is None or file.get_field("tokenizer.ggml.model") is None:
        raise UserError(f"{file.path} contains no tokenizer. Give a GGUF file that was converted with its vocabulary.")
    for tensor in file.tensors:
        if not _can_dequantize(tensor.tensor_type):
            raise UserError(
                f"{file.path}: its tensor {tensor.name} is stored as {tensor.tensor_type.name}, which cannot be "
                "dequantized. Give another quantization of the model, such as Q8_0 or Q4_K_M."
            )


def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    """Whether gguf can turn a block of this kind into numbers."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _array_bytes(data: Any, start: int, item: GGUFValueType, count: int) -> int:
    """The size of an array's items, which start at byte `start`."""
    if item in _SCALAR_BYTES:
        return int(count) * _SCALAR_BYTES[item]
    if item == GGUFValueType.STRING:
        return _strings_bytes(memoryview(data), start, count)
    raise ValueError(f"an array of {item.name} in the metadata")


def _strings_bytes(data: memoryview, start: int, count: int) -> int:
    """Each string is its length in 8 bytes and its text."""
    position = start
    for _ in range(count):
        position += 8 + struct.unpack_from("<Q", data, position)[0]
    return position - start


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _one_token() -> bytes:
    """A vocabulary of one token: some configs in transformers need one, whatever it contains."""
    return _string(_TOKENS) + struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, 1) + _string("-")
