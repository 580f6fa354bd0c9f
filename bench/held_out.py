"""What the scripts that score text share: the text in windows of the model's context, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pysa


def text_windows(model: pysa.Model, files: Sequence[Path], n_most: int) -> NDArray[np.int64]:
    """The files' tokens, (n_windows, n_ctx_train), at most `n_most` windows.

    Raises:
        SystemExit: there are not enough for one.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    tokens = np.array(model.tokenize(text, add_special=False, parse_special=False), dtype=np.int64)
    n_ctx = model.n_ctx_train
    n_windows = min(n_most, len(tokens) // n_ctx)
    if n_windows == 0:
        raise SystemExit(f"--text: expected at least {n_ctx} tokens, got {len(tokens)}")
    return tokens[: n_windows * n_ctx].reshape(n_windows, n_ctx)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n_vocab) -> (n, n_vocab), in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
