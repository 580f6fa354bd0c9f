"""Checks of what a caller passes to Model and Session, before the native engine sees it.

Every fault is an ArgumentError that names the argument, the value found and the range expected.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError

PathLike: TypeAlias = "str | os.PathLike[str]"
Tokens: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
CacheType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
Attention: TypeAlias = Literal["auto", "fused", "composed"]
LogitsMode: TypeAlias = Literal["last", "all", "none"]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
ATTENTIONS = ("auto", "fused", "composed")
LOGITS_MODES = ("last", "all", "none")


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Returns `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name}: unknown value: expected one of {', '.join(choices)}, got {value!r}")
    return value


def check_int(name: str, value: object, low: int, high: int) -> int:
    """Returns `value` as an int if it is an integer (no bool) in [low, high]."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ArgumentError(f"{name}: wrong type: expected an integer, got {type(value).__name__} {value!r}")
    if not low <= value <= high:
        raise ArgumentError(f"{name}: out of range: expected {low}..{high}, got {value}")
    return int(value)


def check_float(name: str, value: object, low: float, high: float) -> float:
    """Returns `value` as a float if it is a finite number (no bool) in [low, high]."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentError(f"{name}: wrong type: expected a number, got {type(value).__name__} {value!r}")
    if not low <= value <= high:  # nan fails this too
        raise ArgumentError(f"{name}: out of range: expected {low:g}..{high:g}, got {value}")
    return float(value)


def check_bool(name: str, value: object) -> bool:
    """Returns `value` if it is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name}: wrong type: expected True or False, got {type(value).__name__} {value!r}")
    return bool(value)


def check_text(name: str, value: object) -> str:
    """Returns `value` if it is a str that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name}: wrong type: expected str, got {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        found = value[e.start : e.end]
        raise ArgumentError(f"{name}: lone surrogate at character {e.start}: expected text, got {found!r}") from None
    return value


def check_path(name: str, value: object) -> str:
    """Returns a path as str if it is a str or os.PathLike that the file system can take."""
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{name}: wrong type: expected a path, got {type(value).__name__} {value!r}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ArgumentError(f"{name}: not a path: expected text without NUL, got {path!r}")
    return path


def check_tokens(
    tokens: object, n_vocab: int, *, name: str = "tokens", allow_empty: bool = False
) -> npt.NDArray[np.int32]:
    """Token ids as the engine takes them.

    Args:
        tokens: list, tuple or 1-D integer array of ids, 0 .. n_vocab - 1.
        n_vocab: size of the vocabulary.
        name: how errors call it.
        allow_empty: whether no tokens at all are fine.

    Returns:
        int32 (n_tokens,), contiguous.

    Raises:
        ArgumentError: floats, bools, another dimension, an empty sequence or an id out of range.
    """
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence | np.ndarray):
        raise ArgumentError(f"{name}: wrong type: expected a sequence of token ids, got {type(tokens).__name__}")
    if not isinstance(tokens, np.ndarray):
        for i, token in enumerate(tokens):
            if isinstance(token, bool | np.bool_) or not isinstance(token, int | np.integer):
                raise ArgumentError(
                    f"{name}[{i}]: wrong type: expected an integer, got {type(token).__name__} {token!r}"
                )
    # An empty list has no integer type of its own; ids beyond 64 bits become objects, which compare all the same.
    ids = tokens if isinstance(tokens, np.ndarray) else np.array(tokens, dtype=None if len(tokens) else np.int32)
    if ids.ndim != 1:
        raise ArgumentError(f"{name}: wrong shape: expected (n_tokens,), got {ids.shape}")
    if isinstance(tokens, np.ndarray) and not np.issubdtype(ids.dtype, np.integer):
        raise ArgumentError(f"{name}: wrong type: expected an integer array, got {ids.dtype}")
    if ids.size == 0:
        if allow_empty:
            return np.empty(0, dtype=np.int32)
        raise ArgumentError(f"{name}: empty: expected at least one token, got none")
    bad = np.flatnonzero((ids < 0) | (ids >= n_vocab))
    if bad.size:
        raise ArgumentError(f"{name}[{bad[0]}]: out of range: expected 0..{n_vocab - 1}, got {ids[bad[0]]}")
    return np.ascontiguousarray(ids, dtype=np.int32)
