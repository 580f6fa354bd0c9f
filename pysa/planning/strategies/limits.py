"""Which heads a strategy may change: given by hand, as layers and heads.

`LAYERS` is `0,4-6`; `HEADS` is `11:2-3,4-6:0`, layers and their heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError
from pysa.planning.strategies.groups import Shape

_SPAN = re.compile(r"\d{1,6}(?:-\d{1,6})?")


@dataclass(frozen=True, eq=False)
class Limits:
    """`free`: (n_layer, n_head) bool, whether a head may be anything but an owner."""

    shape: Shape
    free: npt.NDArray[np.bool_]

    @classmethod
    def none(cls, shape: Shape) -> Limits:
        """Every head may change."""
        return cls(shape, np.ones((shape.n_layer, shape.n_head), dtype=bool))

    @classmethod
    def of(
        cls, shape: Shape, only_layers: str = "", keep_layers: str = "", only_heads: str = "", keep_heads: str = ""
    ) -> Limits:
        """As the options `--only-layers` and so on have it; "" does not limit.

        Raises:
            ArgumentError: a text of another form, a layer or head that the model does not have, or nothing left.
        """
        free = np.ones((shape.n_layer, shape.n_head), dtype=bool)
        if only_layers:
            free &= _layers(shape, only_layers, "--only-layers")
        if only_heads:
            free &= _heads(shape, only_heads, "--only-heads")
        if keep_layers:
            free &= ~_layers(shape, keep_layers, "--keep-layers")
        if keep_heads:
            free &= ~_heads(shape, keep_heads, "--keep-heads")
        if not free.any():
            raise ArgumentError("--only and --keep options: they leave no head that may change: expected at least one")
        return cls(shape, free)

    def groups(self) -> npt.NDArray[np.bool_]:
        """(n_layer, n_head_kv): whether all heads of a group may change."""
        per_group = self.free.reshape(self.shape.n_layer, self.shape.n_head_kv, -1)
        groups: npt.NDArray[np.bool_] = np.logical_and.reduce(per_group, axis=2)
        return groups

    def layers(self) -> list[bool]:
        """Whether all heads of a layer may change, for each."""
        return [bool(row.all()) for row in self.free]


def parse_spans(text: str, n: int, where: str) -> list[tuple[int, int]]:
    """`0,4-6` as [(0, 0), (4, 6)], each within 0..n - 1.

    Raises:
        ArgumentError: naming `where`.
    """
    spans = []
    for part in text.split(","):
        if not _SPAN.fullmatch(part.strip()):
            raise ArgumentError(f"{where}: expected numbers and ranges as 0,4-6, got {text!r}")
        first, _, last = part.strip().partition("-")
        span = (int(first), int(last or first))
        if not span[0] <= span[1] < n:
            raise ArgumentError(f"{where}: expected a range within 0-{n - 1}, got {part.strip()!r}")
        spans.append(span)
    return spans


def _indices(text: str, n: int, where: str) -> list[int]:
    return [i for first, last in parse_spans(text, n, where) for i in range(first, last + 1)]


def _layers(shape: Shape, text: str, where: str) -> npt.NDArray[np.bool_]:
    chosen = np.zeros((shape.n_layer, shape.n_head), dtype=bool)
    chosen[_indices(text, shape.n_layer, where)] = True
    return chosen


def _heads(shape: Shape, text: str, where: str) -> npt.NDArray[np.bool_]:
    chosen = np.zeros((shape.n_layer, shape.n_head), dtype=bool)
    for layers, heads in _pairs(text, where):
        for il in _indices(layers, shape.n_layer, where):
            chosen[il, _indices(heads, shape.n_head, where)] = True
    return chosen


def _pairs(text: str, where: str) -> Iterable[tuple[str, str]]:
    """`11:2-3,5,4:0` as ("11", "2-3,5"), ("4", "0"): a part without a colon goes on with the heads before it."""
    found: list[list[str]] = []
    for part in text.split(","):
        layers, colon, heads = part.partition(":")
        if colon:
            found.append([layers, heads])
        elif found:
            found[-1][1] += f",{part}"
        else:
            raise ArgumentError(f"{where}: expected layers and their heads as 11:2-3, got {text!r}")
    return [(layers, heads) for layers, heads in found]
