"""GGUF to GGUF: every key and tensor byte for byte, only `pysa.*` changes.

Nothing is decoded and encoded again, so what this package does not know survives as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pysa.plan import KEY_PREFIX, PRUNED_KEY, Plan
from pysa_convert.container import GgufBytes, Key, TensorEntry, encode_header, encode_key
from pysa_convert.writer import progress_bar, write_gguf

N_CHUNK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class CopiedTensor:
    """A tensor of another GGUF."""

    source: GgufBytes
    entry: TensorEntry

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        """In ggml order."""
        return self.entry.shape

    @property
    def type(self) -> int:
        """The type by ggml's number."""
        return self.entry.type

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return self.entry.size_bytes

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes."""
        data = self.source.tensor_view(self.entry)
        for start in range(0, len(data), N_CHUNK_BYTES):
            yield data[start : start + N_CHUNK_BYTES]


def plan_keys(plan: Plan | None, pruned: bool = False) -> list[Key]:
    """The `pysa.*` keys of a file; none without a plan."""
    if plan is None:
        return []
    keys = [encode_key(name, kind, value) for name, (kind, value) in plan.to_keys().items()]
    return keys + ([encode_key(PRUNED_KEY, "bool", True)] if pruned else [])


def kept_keys(source: GgufBytes, plan_stays: bool = False) -> list[Key]:
    """The source's keys as they are, without `pysa.*` unless the plan stays."""
    return [key for key in source.keys if plan_stays or not key.name.startswith(KEY_PREFIX)]


def copy_bytes(source: GgufBytes, keys: Sequence[Key], dropped: Collection[str] = ()) -> int:
    """Size of the copy, within an alignment."""
    header = sum(len(key.raw) for key in keys) + source.tensors_end - source.tensors_start + 64
    gone = sum(tensor.size_bytes for tensor in source.tensors if tensor.name in dropped)
    return header + source.size_bytes - source.data_offset - gone


def copy_gguf(
    source: GgufBytes, path: Path, keys: Sequence[Key], *, dropped: Collection[str] = (), quiet: bool = True
) -> None:
    """Writes `keys` and the source's tensors to `path`.

    Without dropped tensors the tensor entries and the whole data section are copied as they are, padding included.
    """
    if dropped:
        tensors = [CopiedTensor(source, entry) for entry in source.tensors if entry.name not in dropped]
        write_gguf(path, keys, tensors, quiet=quiet, version=source.version, alignment=source.alignment)
        return
    header = encode_header(list(keys), source.tensors, source.version, source.alignment)
    with open(path, "wb") as out, progress_bar(source.size_bytes - source.data_offset, quiet) as bar:
        out.write(header)
        for start in range(source.data_offset, source.size_bytes, N_CHUNK_BYTES):
            n = out.write(source.view(start, min(start + N_CHUNK_BYTES, source.size_bytes)))
            bar.update(n)
