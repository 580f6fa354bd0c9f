"""Files of arrays (.npz) in which planning keeps results and interrupted work, and what tells whose they are.

A file is written beside its name and renamed, and checked as a whole before anything in it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa.errors import StateFileError

Array = npt.NDArray[Any]

_KIND, _VERSION = "kind", "version"
_N_STRETCHES, _STRETCH_BYTES = 32, 1 << 16


def save_arrays(path: str | os.PathLike[str], kind: str, version: int, arrays: Mapping[str, Array]) -> None:
    """Writes a file of arrays; an existing one is replaced.

    Args:
        path: the file, by any name.
        kind: what it is, e.g. `pysa calibration`.
        version: of that kind.
        arrays: by name; no objects.

    Raises:
        StateFileError: it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    values: dict[str, Any] = {_KIND: np.array(kind), _VERSION: np.array(version), **arrays}
    try:
        with open(temporary, "wb") as out:
            np.savez(out, **values)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise StateFileError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path: str | os.PathLike[str], kind: str, version: int, names: Mapping[str, str]) -> dict[str, Array]:
    """Reads a file of save_arrays.

    Args:
        path: the file.
        kind: what it must be.
        version: of that kind.
        names: the arrays it must have, and the numpy kind of each: `i`, `f` or `U`. Numbers must be finite.

    Raises:
        StateFileError: it cannot be read, is damaged, or is something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read: expected a {kind}, got: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, Array] = {} if damaged else {name: file[name] for name in file.files}
    except Exception as error:  # a damaged file makes zipfile and numpy raise whatever there is
        raise StateFileError(f"{path}: damaged, or no {kind}: {error}") from error
    if damaged:
        raise StateFileError(f"{path}: damaged: the checksum of {damaged} is wrong; make it again")
    found = str(arrays.pop(_KIND, "something else"))
    if found != kind:
        raise StateFileError(f"{path}: wrong kind of file: expected a {kind}, got {found}")
    if (found := str(arrays.pop(_VERSION, None))) != str(version):
        raise StateFileError(f"{path}: unknown version: expected {version}, got {found}; make it again")
    if set(arrays) != set(names):
        raise StateFileError(f"{path}: wrong contents: expected {', '.join(names)}, got {', '.join(arrays)}")
    for name, wanted in names.items():
        array = arrays[name]
        if array.dtype.kind != wanted or (wanted == "f" and not np.isfinite(array).all()):
            raise StateFileError(f"{path}: {name}: expected finite values of kind {wanted}, got {array.dtype} or NaN")
    return arrays


def fingerprint(path: str | os.PathLike[str]) -> str:
    """What tells one model file from another: sha256 of its size and of 64 KiB at 32 places spread evenly over it.

    Raises:
        StateFileError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(n_bytes).encode())
            for i in range(_N_STRETCHES):
                file.seek(max(0, n_bytes - _STRETCH_BYTES) * i // (_N_STRETCHES - 1))
                digest.update(file.read(_STRETCH_BYTES))
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
