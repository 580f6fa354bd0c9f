"""A checkpoint's tensor as GGUF bytes, a few rows at a time: memory does not depend on the model's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf.quants
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pysa.errors import ConvertError
from pysa_convert.architectures.base import MappedTensor
from pysa_convert.container import tensor_bytes
from pysa_convert.sources.checkpoint import SafeTensor

N_CHUNK_BYTES = 32 * 1024 * 1024
TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
SAME = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16}
F16_MAX = 65504.0


def choose_type(name: str, shape: tuple[int, ...], outtype: str) -> GGMLQuantizationType:
    """The ggml type of a tensor; `shape` is in numpy order.

    Vectors, norms and biases stay f32, as in llama.cpp's own files; a row that is no whole number of blocks is f16.
    """
    if len(shape) == 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return GGMLQuantizationType.F32
    chosen = TYPES[outtype]
    return chosen if shape[-1] % GGML_QUANT_SIZES[chosen][0] == 0 else GGMLQuantizationType.F16


@dataclass(frozen=True)
class RowChunkTensor:
    """One tensor of the checkpoint, converted while it is written."""

    name: str
    source: SafeTensor
    n_head_permuted: int
    kind: GGMLQuantizationType

    @classmethod
    def of(cls, mapped: MappedTensor, outtype: str) -> RowChunkTensor:
        """The tensor in the type that `outtype` gives it."""
        kind = choose_type(mapped.name, mapped.source.shape, outtype)
        return cls(mapped.name, mapped.source, mapped.n_head_permuted, kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """In ggml order."""
        return self.source.shape[::-1]

    @property
    def type(self) -> int:
        """The type by ggml's number."""
        return int(self.kind)

    @property
    def size_bytes(self) -> int:
        """Bytes in the GGUF."""
        return tensor_bytes(self.shape, self.type)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The data, rows in order; whole heads at a time where they are permuted."""
        n_rows = self.source.shape[0]
        # a vector is one row of values to quantise, but rows of one value to read
        row_bytes = 4 * (self.source.shape[-1] if len(self.source.shape) > 1 else 1)
        unit = n_rows // self.n_head_permuted if self.n_head_permuted else 1
        step = max(1, N_CHUNK_BYTES // (row_bytes * unit)) * unit
        for first in range(0, n_rows, step):
            rows = self.source.read_rows(first, min(step, n_rows - first))
            if self.n_head_permuted:
                rows = interleave_halves(rows, unit)
            yield self._encode(rows).data.cast("B")

    def _encode(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if SAME.get(self.source.dtype) == self.kind:
            return np.ascontiguousarray(rows)
        values = to_f32(rows, self.source.dtype)
        if not np.isfinite(values).all():
            raise ConvertError(f"{self.source.path}: {self.source.name}: expected finite values, got NaN or infinity")
        if self.kind == GGMLQuantizationType.F32:
            return np.ascontiguousarray(values)
        if self.kind == GGMLQuantizationType.F16:
            largest = float(np.abs(values).max(initial=0.0))
            if largest > F16_MAX:
                advice = "use --outtype bf16 or f32"
                raise ConvertError(
                    f"{self.source.name}: expected values within f16's 65504, got {largest:.6g}; {advice}"
                )
            return values.astype(np.float16)
        return np.ascontiguousarray(gguf.quants.quantize(values, self.kind))


@dataclass(frozen=True)
class ArrayTensor:
    """A small tensor that the converter makes itself; f32."""

    name: str
    values: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """In ggml order."""
        return self.values.shape[::-1]

    @property
    def type(self) -> int:
        """The type by ggml's number."""
        return int(GGMLQuantizationType.F32)

    @property
    def size_bytes(self) -> int:
        """Bytes in the GGUF."""
        return self.values.nbytes

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The data in one piece."""
        yield self.values.tobytes()


def to_f32(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Stored values as f32; bf16 arrives as its bits in u16."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def interleave_halves(rows: npt.NDArray[Any], n_head_rows: int) -> npt.NDArray[Any]:
    """Reorders each head's rows from halves (0..d/2, d/2..d) to pairs (0, d/2, 1, d/2 + 1, ...).

    Shapes: rows (n_heads * n_head_rows, row), any number of whole heads.
    """
    paired = rows.reshape(-1, 2, n_head_rows // 2, rows.shape[-1]).swapaxes(1, 2)
    return np.ascontiguousarray(paired.reshape(rows.shape))
