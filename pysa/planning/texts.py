"""Text files as tokens: the corpus of a measurement, its identity, and samples cut from it.

Called by the measuring and the planning commands. Documents with questions in them are tasks.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pysa._arguments import PathLike, check_int, check_path
from pysa.errors import ArgumentError
from pysa.model import Model

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text files as one row of tokens.

    Attributes:
        tokens: (n_tokens,), without special tokens.
        sha256: of the files' bytes one after the other, as `cat FILE... | sha256sum` gives it.
        paths: the files.
    """

    tokens: Ids
    sha256: str
    paths: tuple[str, ...]


def read_corpus(model: Model, paths: Sequence[PathLike]) -> Corpus:
    """Reads UTF-8 text files and tokenises one after the other.

    The newline that ends the last file is left out, so that one file gives the tokens of llama.cpp's tools.

    Raises:
        ArgumentError: no file, one that cannot be read or is not UTF-8, or no text in all of them.
    """
    names = tuple(check_path("path", path) for path in paths)
    if not names:
        raise ArgumentError("text: no file: expected at least one UTF-8 text file, got none")
    digest = hashlib.sha256()
    parts: list[list[int]] = []
    for i, name in enumerate(names):
        try:
            raw = Path(name).read_bytes()
        except OSError as error:
            raise ArgumentError(f"{name}: cannot be read: expected a text file, got: {error.strerror}") from error
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {raw[error.start]:#04x} at {error.start}"
            raise ArgumentError(f"{name}: not UTF-8: expected text, got {found}; convert it first") from None
        digest.update(raw)
        if i == len(names) - 1:
            text = text.removesuffix("\n")
        parts.append(model.tokenize(text, add_special=False, parse_special=False))
    tokens = np.array([token for part in parts for token in part], dtype=np.int32)
    if not tokens.size:
        raise ArgumentError(f"{', '.join(names)}: empty: expected some text, got no token")
    return Corpus(tokens, digest.hexdigest(), names)


def leading_tokens(model: Model) -> Ids:
    """What the model expects before a text: its BOS token, or nothing."""
    vocab = model.native.vocab
    return np.array([vocab.bos] if vocab.add_bos and vocab.bos is not None else [], dtype=np.int32)


def samples(model: Model, corpus: Corpus, n_samples: int, n_tokens: int) -> list[Ids]:
    """Stretches of the corpus, spread evenly and not overlapping, each a text of its own.

    Args:
        n_samples: how many, 1 or more.
        n_tokens: length of each, the leading BOS counted where the model adds one.

    Returns:
        int32 arrays (n_tokens,).

    Raises:
        ArgumentError: an argument is out of range, or the corpus is too short.
    """
    lead = leading_tokens(model)
    n_samples = check_int("n_samples", n_samples, 1, 2**31 - 1)
    n = check_int("n_tokens", n_tokens, len(lead) + 1, 2**31 - 1) - len(lead)
    n_held = len(corpus.tokens)
    if n_held < n_samples * n:
        raise ArgumentError(
            f"{', '.join(corpus.paths)}: too short: expected {n_samples * n} tokens for {n_samples} samples of "
            f"{n_tokens}, got {n_held}; give more text, or ask for fewer or shorter samples"
        )
    starts = [i * n_held // n_samples for i in range(n_samples)]
    return [np.concatenate([lead, corpus.tokens[start : start + n]]) for start in starts]
