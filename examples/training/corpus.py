"""The text: the Python standard library's own source, split by file into training and held-out parts.

Which files exist depends on the Python that runs this; `Corpus.sha256` identifies the text that was used.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HELD_OUT_SHARE = 20  # one file in this many is held out
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """Source files as text, in a fixed order."""

    train: list[str]
    held_out: list[str]
    sha256: str


def read_corpus() -> Corpus:
    """Reads the running Python's library; files whose hashed name falls in the held-out share are set apart."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[str] = []
    held_out: list[str] = []
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest.update(name.as_posix().encode() + b"\0" + text.encode() + b"\0")
        name_hash = hashlib.sha256(name.as_posix().encode()).digest()
        part = held_out if name_hash[0] % HELD_OUT_SHARE == 0 else train
        part.append(text)
    return Corpus(train, held_out, digest.hexdigest())


def encode_files(tokenizer: Tokenizer, texts: list[str], end_id: int) -> np.ndarray:
    """Encodes files one after the other, each followed by `end_id`.

    Returns:
        int32 array (n_tokens,).
    """
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    parts = [np.array([*e.ids, end_id], dtype=np.int32) for e in encodings]
    return np.concatenate(parts)
