"""Writes a GGUF beside its name and renames it when it is whole: a reader never sees half a file.

Sizes are known before the first byte, so free space is checked first. What is written is decided by the pipeline.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from pysa.errors import ConvertError
from pysa_convert.container import ALIGNMENT, VERSION, Key, TensorEntry, align, encode_header

SPARE_BYTES = 16 * 1024 * 1024


class OutTensor(Protocol):
    """A tensor to be written: `shape` in ggml order, `chunks` yields `size_bytes` bytes in all."""

    @property
    def name(self) -> str:
        """Its name in the GGUF."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, fastest first."""

    @property
    def type(self) -> int:
        """Its ggml type."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    def chunks(self) -> Iterable[bytes | memoryview]:
        """Its data in order."""


def check_target(path: Path, force: bool) -> None:
    """Raises ConvertError if `path` cannot become the output."""
    if path.is_dir():
        raise ConvertError(f"{path}: expected a file name, got a folder")
    if path.exists() and not force:
        raise ConvertError(f"{path}: exists; pass --force to replace it")
    if not path.parent.is_dir():
        raise ConvertError(f"{path}: its folder does not exist")


@contextlib.contextmanager
def atomic_output(path: Path, force: bool, n_bytes: int) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` if the block succeeds, removes it if not.

    Args:
        path: the output.
        force: replace an existing file.
        n_bytes: what the block is going to write; checked against the free space.

    Raises:
        ConvertError: `path` is taken, its folder is missing or too full, or the system refuses.
    """
    check_target(path, force)
    check_free(path.parent, n_bytes)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        _sync(temporary)
        if path.exists() and not force:
            raise ConvertError(f"{path}: appeared while it was being written; pass --force to replace it")
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_free(folder: Path, n_bytes: int) -> None:
    """Raises ConvertError if `folder` has no room for `n_bytes`."""
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE_BYTES > free:
        raise ConvertError(f"{folder}: not enough space: expected {n_bytes:,} bytes free, got {free:,}")


def lay_out(tensors: Sequence[OutTensor], alignment: int = ALIGNMENT) -> list[TensorEntry]:
    """The tensors' entries, one after the other, each aligned."""
    entries = []
    offset = 0
    for tensor in tensors:
        entries.append(TensorEntry(tensor.name, tensor.shape, tensor.type, offset, tensor.size_bytes))
        offset = align(offset + tensor.size_bytes, alignment)
    return entries


def file_bytes(keys: Sequence[Key], tensors: Sequence[OutTensor]) -> int:
    """Size of the file that `write_gguf` writes."""
    entries = lay_out(tensors)
    data = align(entries[-1].offset + entries[-1].size_bytes) if entries else 0
    return len(encode_header(list(keys), entries)) + data


def write_gguf(
    path: Path,
    keys: Sequence[Key],
    tensors: Sequence[OutTensor],
    *,
    quiet: bool = True,
    version: int = VERSION,
    alignment: int = ALIGNMENT,
) -> None:
    """Writes keys, then tensors chunk by chunk, with a progress bar in bytes (none if `quiet` or not on a terminal)."""
    entries = lay_out(tensors, alignment)
    total = sum(entry.size_bytes for entry in entries)
    with open(path, "wb") as out, progress_bar(total, quiet) as bar:
        out.write(encode_header(list(keys), entries, version, alignment))
        for tensor in tensors:
            n = 0
            for chunk in tensor.chunks():
                out.write(chunk)
                n += len(chunk)
                bar.update(len(chunk))
            if n != tensor.size_bytes:
                raise ConvertError(f"{tensor.name}: expected {tensor.size_bytes} bytes of data, got {n}")
            out.write(bytes(align(n, alignment) - n))


def progress_bar(total: int, quiet: bool) -> tqdm[None]:
    """A bar in bytes; tqdm's own rule hides it where stderr is no terminal."""
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=True if quiet else None, leave=False)


def _sync(path: Path) -> None:
    """Flushes a file, or the folder that holds a new name, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
