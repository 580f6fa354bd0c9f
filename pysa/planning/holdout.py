"""Cuts a corpus in two: what a plan is chosen by, and what it is judged by."""

from __future__ import annotations

import numpy as np

from pysa.errors import ArgumentError
from pysa.planning.texts import Corpus

N_SEGMENTS = 16
N_IN_TURN = 4  # one segment of so many is held out


def split(corpus: Corpus, n_tokens: int) -> tuple[Corpus, Corpus]:
    """Every fourth segment is held out, so that both parts are of all files.

    Args:
        corpus: the text.
        n_tokens: length of a sample; no segment is shorter.

    Returns:
        Text to choose by, three quarters, and text to judge by. Both name the whole corpus.

    Raises:
        ArgumentError: the text is too short for four segments.
    """
    n_segments = min(N_SEGMENTS, len(corpus.tokens) // n_tokens // N_IN_TURN * N_IN_TURN)
    if n_segments == 0:
        raise ArgumentError(
            f"{', '.join(corpus.paths)}: too short: expected at least {N_IN_TURN * n_tokens} tokens, four samples of "
            f"{n_tokens}, got {len(corpus.tokens)}; give more text, or shorter samples with --tokens"
        )
    segments = np.array_split(corpus.tokens, n_segments)
    is_held = [i % N_IN_TURN == N_IN_TURN // 2 for i in range(n_segments)]
    chosen = np.concatenate([s for s, held in zip(segments, is_held, strict=True) if not held])
    held = np.concatenate([s for s, held in zip(segments, is_held, strict=True) if held])
    return Corpus(chosen, corpus.sha256, corpus.paths), Corpus(held, corpus.sha256, corpus.paths)
