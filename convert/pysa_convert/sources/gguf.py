"""A GGUF as the source: checked, with the few numbers a plan needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pysa.errors import ModelFileError, UnsupportedModelError
from pysa_convert.architectures import SUPPORTED
from pysa_convert.architectures.base import Dims
from pysa_convert.container import GgufBytes
from pysa_convert.faults import Faults


class GgufSource(GgufBytes):
    """A mapped GGUF that holds a model.

    Raises:
        ModelFileError: the file is damaged or no model.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        faults = Faults(str(path))
        kind = self.values.get("general.type", "model")
        if kind != "model":
            faults.add(f"general.type: expected 'model', got {kind!r}")
        if self.values.get("split.count", 0) not in (0, 1):
            faults.add("split.count: expected a single file; merge the parts first (llama-gguf-split --merge)")
        if not isinstance(self.values.get("general.architecture"), str):
            faults.add(f"general.architecture: expected a name, got {self.values.get('general.architecture')!r}")
        if not self.tensors:
            faults.add("tensors: expected weights, got none")
        faults.raise_if_any()

    @property
    def arch(self) -> str:
        """GGUF's name of the architecture."""
        return str(self.values["general.architecture"])

    @property
    def name(self) -> str:
        """general.name, or the file's."""
        return str(self.values.get("general.name") or self.path.stem)

    def dims(self) -> Dims:
        """The numbers a plan needs.

        Raises:
            UnsupportedModelError: an architecture outside the table, or heads that differ between layers.
            ModelFileError: a key is missing or out of range.
        """
        if self.arch not in SUPPORTED:
            expected = ", ".join(sorted(SUPPORTED))
            raise UnsupportedModelError(f"{self.path}: general.architecture: expected {expected}, got {self.arch}")
        faults = Faults(str(self.path))
        n_head = self._heads("attention.head_count", None, faults)
        n_embd = self._number("embedding_length", None, faults)
        head_dim = self._number("attention.key_length", n_embd // max(n_head, 1), faults)
        dims = Dims(
            n_layer=self._number("block_count", None, faults),
            n_ctx=self._number("context_length", None, faults),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=self._heads("attention.head_count_kv", n_head, faults),
            head_dim=head_dim,
            head_dim_v=self._number("attention.value_length", n_embd // max(n_head, 1), faults),
            n_ff=self._heads("feed_forward_length", 0, faults),
            n_vocab=len(self.values.get("tokenizer.ggml.tokens", [])),
        )
        if dims.n_layer > 4096 or dims.n_head > 65536:
            faults.add(f"{self.arch}.block_count: expected a plausible size, got {dims.n_layer} x {dims.n_head}")
        faults.raise_if_any()
        return dims

    def _number(self, key: str, default: int | None, faults: Faults) -> int:
        value = self.values.get(f"{self.arch}.{key}", default)
        if type(value) is not int or value < 1:
            faults.add(f"{self.arch}.{key}: expected a number above 0, got {value!r}")
            return 1
        return value

    def _heads(self, key: str, default: int | None, faults: Faults) -> int:
        value: Any = self.values.get(f"{self.arch}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UnsupportedModelError(f"{self.path}: {self.arch}.{key}: expected layers alike, got {value[:8]}")
            value = value[0]
        if type(value) is not int or value < (0 if default == 0 else 1):
            faults.add(f"{self.arch}.{key}: expected a number above 0, got {value!r}")
            return 1
        return value


def require_gguf(path: Path) -> GgufSource:
    """Opens `path`; a missing file is named."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    return GgufSource(path)
