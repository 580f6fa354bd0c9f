"""A checkpoint folder in Hugging Face format: config.json and safetensors, one file or shards with an index.

Headers are parsed and checked here, data is mapped and read by rows. What the names mean is decided in architectures/.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from pysa.errors import ConvertError, ModelFileError, UnsupportedModelError
from pysa_convert.faults import Faults

INDEX = "model.safetensors.index.json"
N_HEADER_MAX = 100 * 1024 * 1024
# bf16 has no numpy type: its bits are read as u16
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
OTHER_DTYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2}
OTHER_DTYPES |= {"U32": 4, "U64": 8}


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a safetensors file; `shape` is in numpy order, `start` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size_bytes: int

    def read_rows(self, first: int, n: int) -> npt.NDArray[Any]:
        """Rows [first, first + n) as stored, shape (n, row); a vector counts as rows of one value."""
        row = math.prod(self.shape[1:])
        form = np.dtype(DTYPES[self.dtype])
        size_bytes = n * row * form.itemsize
        values: npt.NDArray[Any] = np.fromfile(
            self.path, form, n * row, offset=self.start + first * row * form.itemsize
        )
        if values.nbytes != size_bytes:
            raise ModelFileError(f"{self.path}: {self.name}: expected {size_bytes} bytes, got {values.nbytes}")
        return values.reshape(n, row)


class Checkpoint:
    """config.json and the tensors of a folder.

    Raises:
        ModelFileError: a file is missing, damaged or inconsistent; all faults at once.
        ConvertError: a pickle checkpoint.
        UnsupportedModelError: a quantised checkpoint, or one that needs its own Python code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json", "a checkpoint folder has a config.json")
        _refuse(folder, self.config)
        self.tensors = read_tensors(folder)

    @property
    def architecture(self) -> str:
        """The Hugging Face class that the checkpoint names."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise ModelFileError(f"{self.folder / 'config.json'}: architectures: expected a class name, got {names!r}")
        return names[0]


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """A JSON object from a file, or ModelFileError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: missing{'; ' + hint if hint else ''}") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: expected JSON in UTF-8: {error}") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_tensors(folder: Path) -> dict[str, SafeTensor]:
    """The tensors of all shards; the index, where there is one, must agree with them."""
    faults = Faults(str(folder))
    weight_map: dict[str, str] | None = None
    if (folder / INDEX).is_file():
        weight_map = _read_index(folder, faults)
        files = sorted(set(weight_map.values()))
    else:
        # some repositories hold the same weights a second time, in another layout
        files = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
        files = files or sorted(path.name for path in folder.glob("*.safetensors"))
    if not files and not faults.found:
        pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt*")])
        if pickles:
            advice = "save the model with safetensors (transformers: model.save_pretrained) and convert that"
            raise ConvertError(f"{folder / pickles[0]}: a pickle checkpoint can run code and is not read; {advice}")
        raise ModelFileError(f"{folder}: no *.safetensors file")
    tensors: dict[str, SafeTensor] = {}
    for name in files:
        if not (folder / name).is_file():
            faults.add(f"{name}: shard missing")
            continue
        for tensor in _read_header(folder / name, faults):
            if tensor.name in tensors:
                faults.add(f"{tensor.name}: expected once, got it in {tensors[tensor.name].path.name} and {name}")
            tensors[tensor.name] = tensor
    for tensor_name, shard in (weight_map or {}).items():
        if (folder / shard).is_file():
            found = tensors[tensor_name].path.name if tensor_name in tensors else "no such tensor"
            if found != shard:
                faults.add(f"{tensor_name}: expected in {shard} as the index says, got {found}")
    if weight_map is not None:
        for tensor_name in sorted(set(tensors) - set(weight_map)):
            faults.add(f"{tensor_name}: in {tensors[tensor_name].path.name}, but not in the index")
    faults.raise_if_any()
    return tensors


def _read_index(folder: Path, faults: Faults) -> dict[str, str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        faults.add(f"{INDEX}: weight_map: expected an object, got {type(weight_map).__name__}")
        return {}
    good: dict[str, str] = {}
    for name, shard in weight_map.items():
        # a name with a path in it could point outside the folder
        if isinstance(shard, str) and shard == Path(shard).name and shard.endswith(".safetensors"):
            good[name] = shard
        else:
            faults.add(f"{INDEX}: {name}: expected the name of a safetensors file, got {shard!r}")
    return good


def _read_header(path: Path, faults: Faults) -> list[SafeTensor]:
    """The tensors of one file; damage is added to `faults`."""
    size = path.stat().st_size
    if size < 8:
        faults.add(f"{path.name}: expected at least 8 bytes, got {size}")
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (n_header,) = struct.unpack("<Q", data[:8])
        if not 2 <= n_header <= min(size - 8, N_HEADER_MAX):
            faults.add(f"{path.name}: header: expected 2..{min(size - 8, N_HEADER_MAX)} bytes, got {n_header}")
            return []
        try:
            header = json.loads(data[8 : 8 + n_header].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            faults.add(f"{path.name}: header: expected JSON: {error}")
            return []
    if not isinstance(header, dict):
        faults.add(f"{path.name}: header: expected an object, got {type(header).__name__}")
        return []
    start = 8 + n_header
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            tensor = _read_entry(path, name, entry, start, size, faults)
            tensors += [tensor] if tensor else []
    end = start
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start < end:
            faults.add(f"{path.name}: {tensor.name}: expected data from byte {end} on, got {tensor.start}: overlap")
        end = tensor.start + tensor.size_bytes
    return tensors


def _read_entry(path: Path, name: str, entry: Any, start: int, size: int, faults: Faults) -> SafeTensor | None:
    where = f"{path.name}: {name}"
    if not isinstance(entry, dict):
        faults.add(f"{where}: expected an object, got {type(entry).__name__}")
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    item = np.dtype(DTYPES[dtype]).itemsize if dtype in DTYPES else OTHER_DTYPES.get(str(dtype))
    if item is None:
        faults.add(f"{where}: dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        return None
    if not _are_naturals(shape) or not _are_naturals(offsets) or len(offsets) != 2:
        faults.add(f"{where}: expected a shape and two offsets, got {shape!r} and {offsets!r}")
        return None
    n_bytes = math.prod(shape) * item
    if not offsets[0] <= offsets[1] <= size - start or offsets[1] - offsets[0] != n_bytes:
        expected = f"{n_bytes} bytes for {dtype} {shape} inside {size - start}"
        faults.add(f"{where}: data_offsets: expected {expected}, got {offsets}; the file may be cut short")
        return None
    return SafeTensor(name, str(dtype), tuple(shape), path, start + offsets[0], n_bytes)


def _are_naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _refuse(folder: Path, config: dict[str, Any]) -> None:
    where = folder / "config.json"
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        advice = "convert the original checkpoint and choose --outtype here"
        raise UnsupportedModelError(f"{where}: quantization_config: a checkpoint quantised by {method}; {advice}")
    if config.get("auto_map"):
        advice = "pysa runs no code from a checkpoint; look for a version that transformers supports itself"
        raise UnsupportedModelError(f"{where}: auto_map: the model needs Python code of its own; {advice}")
