"""The GGUF container as bytes: keys and tensor entries encoded for writing, and a checked reader that keeps raw bytes.

The reader exists so that GGUF to GGUF can copy what it does not understand; what values mean is decided elsewhere.
Only little-endian files, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pysa.errors import ModelFileError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
N_MAX = 1_000_000
# GGUF value type: (id, struct format); strings and arrays have ids of their own
SCALARS = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
STRING, ARRAY = 8, 9
FORMATS = dict(SCALARS.values())


@dataclass(frozen=True)
class Key:
    """One key: `raw` is its whole entry in the file, name, type and value."""

    name: str
    raw: bytes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor; `shape` is in ggml order, fastest first; `offset` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size_bytes: int


def align(n: int, alignment: int = ALIGNMENT) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return (n + alignment - 1) // alignment * alignment


def tensor_bytes(shape: Iterable[int], type_id: int) -> int:
    """Bytes of a tensor of ggml type `type_id`; rows must be whole blocks."""
    n_block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    n = 1
    for size in shape:
        n *= size
    return n // n_block * n_bytes


def encode_string(text: str) -> bytes:
    """Length as u64, then UTF-8."""
    data = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def encode_key(name: str, kind: str, value: Any) -> Key:
    """One key; `kind` is a scalar type, `string`, or either with `[]`."""
    head = encode_string(name)
    if kind.endswith("[]"):
        item = kind[:-2]
        number = STRING if item == "string" else SCALARS[item][0]
        body = struct.pack("<IIQ", ARRAY, number, len(value))
        if item == "string":
            body += b"".join(map(encode_string, value))
        else:
            body += np.asarray(value, dtype=np.dtype(SCALARS[item][1].replace("<?", "?"))).tobytes()
    elif kind == "string":
        body = struct.pack("<I", STRING) + encode_string(value)
    else:
        number, form = SCALARS[kind]
        body = struct.pack("<I", number) + struct.pack(form, value)
    return Key(name, head + body)


def encode_header(
    keys: list[Key], tensors: list[TensorEntry], version: int = VERSION, alignment: int = ALIGNMENT
) -> bytes:
    """Everything before the data section, padded to its start."""
    parts = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(keys)), *(key.raw for key in keys)]
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [encode_string(tensor.name), shape, struct.pack("<IQ", tensor.type, tensor.offset)]
    header = b"".join(parts)
    return header + bytes(align(len(header), alignment) - len(header))


class GgufBytes:
    """A mapped GGUF: its keys as raw bytes and as values, its tensors as ranges.

    Raises:
        ModelFileError: whatever does not parse, with the byte where it was found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be read: {error}") from error
        self._at = 0
        self._map_size = len(self._map)
        if self._take(4, "magic") != MAGIC:
            raise ModelFileError(f"{path}: expected a GGUF, got {bytes(self._map[:4])!r} at byte 0")
        (self.version,) = self._unpack("<I", "version")
        if self.version not in (2, 3):
            raise self._fault("version", "2 or 3, little-endian", self.version)
        n_tensors, n_keys = self._unpack("<QQ", "counts")
        if n_tensors > N_MAX or n_keys > N_MAX:
            raise self._fault("counts", f"at most {N_MAX}", (n_tensors, n_keys))
        self.keys: list[Key] = []
        self.values: dict[str, Any] = {}
        for _ in range(n_keys):
            self._read_key()
        self.alignment = self.values.get("general.alignment", ALIGNMENT)
        if type(self.alignment) is not int or self.alignment < 8 or self.alignment & (self.alignment - 1):
            raise ModelFileError(f"{path}: general.alignment: expected a power of two, got {self.alignment!r}")
        self.tensors_start = self._at
        self.tensors: list[TensorEntry] = [self._read_tensor() for _ in range(n_tensors)]
        self.tensors_end = self._at
        self.data_offset = align(self._at, self.alignment)
        self._check_tensors()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._map_size

    def view(self, start: int, end: int) -> memoryview:
        """The file's bytes [start, end)."""
        return memoryview(self._map)[start:end]

    def tensor_view(self, tensor: TensorEntry) -> memoryview:
        """A tensor's bytes."""
        start = self.data_offset + tensor.offset
        return self.view(start, start + tensor.size_bytes)

    def _fault(self, what: str, expected: str, found: object) -> ModelFileError:
        return ModelFileError(f"{self.path}: {what} at byte {self._at}: expected {expected}, got {found}")

    def _take(self, n: int, what: str) -> bytes:
        if n > self._map_size - self._at:
            raise self._fault(what, f"{n} more bytes", f"{self._map_size - self._at}: the file is cut short")
        self._at += n
        return self._map[self._at - n : self._at]

    def _unpack(self, form: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form), what))

    def _read_string(self, what: str) -> str:
        (n,) = self._unpack("<Q", what)
        return self._take(n, what).decode("utf-8", errors="surrogateescape")

    def _read_key(self) -> None:
        start = self._at
        name = self._read_string("key name")
        (number,) = self._unpack("<I", name)
        if number == ARRAY:
            item, n = self._unpack("<IQ", name)
            value: Any = self._read_array(name, item, n)
        else:
            value = self._read_scalar(name, number)
        if name in self.values:
            raise self._fault(name, "one entry", "a second one")
        self.values[name] = value
        self.keys.append(Key(name, self._map[start : self._at]))

    def _read_scalar(self, name: str, number: int) -> Any:
        if number == STRING:
            return self._read_string(name)
        if number not in FORMATS:
            raise self._fault(name, "a known value type", number)
        return self._unpack(FORMATS[number], name)[0]

    def _read_array(self, name: str, item: int, n: int) -> list[Any]:
        if item == STRING:
            if n > (self._map_size - self._at) // 8:
                raise self._fault(name, "an array inside the file", f"{n} strings")
            return [self._read_string(name) for _ in range(n)]
        if item not in FORMATS:
            raise self._fault(name, "an array of scalars or strings", f"items of type {item}")
        form = np.dtype(FORMATS[item].replace("<?", "?"))
        values: list[Any] = np.frombuffer(self._take(n * form.itemsize, name), form).tolist()
        return values

    def _read_tensor(self) -> TensorEntry:
        name = self._read_string("tensor name")
        (n_dims,) = self._unpack("<I", name)
        if not 1 <= n_dims <= 4:
            raise self._fault(name, "1 to 4 dimensions", n_dims)
        shape = self._unpack(f"<{n_dims}Q", name)
        type_id, offset = self._unpack("<IQ", name)
        if type_id not in GGMLQuantizationType.__members__.values():
            raise self._fault(name, "a known tensor type", type_id)
        n_block = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)][0]
        if 0 in shape or max(shape) > 2**40 or shape[0] % n_block:
            raise self._fault(name, f"dimensions above 0, rows of whole blocks of {n_block}", shape)
        return TensorEntry(name, shape, type_id, offset, tensor_bytes(shape, type_id))

    def _check_tensors(self) -> None:
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors):
            raise self._fault("tensors", "names that differ", "a repeated name")
        for tensor in self.tensors:
            end = self.data_offset + tensor.offset + tensor.size_bytes
            if tensor.offset % self.alignment or end > self._map_size:
                expected = f"aligned data inside {self._map_size} bytes"
                raise self._fault(tensor.name, expected, f"offset {tensor.offset}, end {end}")
