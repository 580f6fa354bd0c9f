"""The files of pysa/prefix_cache.py: a saved session, and beside it a sidecar that says what it is good for.

An entry is there when its sidecar is: the state is renamed into place first and goes last. What vanishes meanwhile, by
another process's hand, is treated as never having been there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.prefix import common_prefix, returnable

if TYPE_CHECKING:
    from pysa.session import Session

SIDECAR, STATE, WRITING = ".json", ".state", "writing-"


@dataclass(frozen=True)
class Entry:
    """A saved session: the tokens it holds, and the spans of positions it can return to."""

    sidecar: Path
    tokens: npt.NDArray[np.int32]
    spans: list[tuple[int, int]]

    @property
    def state(self) -> Path:
        """The file of Session.save."""
        return self.sidecar.with_suffix(STATE)

    def usable(self, tokens: npt.NDArray[np.int32]) -> int:
        """How many of `tokens` the session would keep: the last position it can return to before they differ."""
        n_shared = common_prefix(self.tokens, tokens)
        return max((min(high, n_shared) for low, high in self.spans if low <= n_shared), default=0)


def read_entry(sidecar: Path) -> Entry | None:
    """What a sidecar says; None if it is gone.

    Raises:
        ValueError: it is damaged, or the state beside it is not the one it was written for.
        OSError: it cannot be read.
    """
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        tokens = np.array(data["tokens"], dtype=np.int32)
        spans = [(int(low), int(high)) for low, high in data["spans"]]
        n_bytes = int(data["state_bytes"])
    except FileNotFoundError:
        return None
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{sidecar.name}: expected tokens, spans and state_bytes, got {error!r}") from error
    entry = Entry(sidecar, tokens, spans)
    if tokens.ndim != 1 or size_bytes(entry.state) != n_bytes:
        raise ValueError(f"{entry.state.name}: expected {n_bytes} bytes, got {size_bytes(entry.state)}")
    return entry


def write_entry(session: Session, folder: Path, group: str, n_bytes_max: int) -> Entry | None:
    """Saves a session as an entry; None if it takes more than `n_bytes_max`.

    Raises:
        StateFileError, OSError: the disk is full, for instance; nothing is left behind.
    """
    tokens, spans = np.array(session.tokens, dtype=np.int32), returnable(session)
    # Written in a folder of its own: until its rights are set, nobody else may open the file.
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=folder) as writing:
        new = Entry(Path(writing) / f"{group}-{secrets.token_hex(8)}{SIDECAR}", tokens, spans)
        session.save(new.state)
        data = {"state_bytes": size_bytes(new.state), "spans": spans, "tokens": tokens.tolist()}
        new.sidecar.write_text(json.dumps(data), encoding="utf-8")
        if size_bytes(new.state) + size_bytes(new.sidecar) > n_bytes_max:
            return None
        for path in (new.state, new.sidecar):
            path.chmod(0o600)
            os.replace(path, folder / path.name)
    return Entry(folder / new.sidecar.name, tokens, spans)


def remove_entry(sidecar: Path) -> None:
    """Removes an entry, or what is left of it."""
    for path in (sidecar, sidecar.with_suffix(STATE)):
        with contextlib.suppress(OSError):
            path.unlink()


def size_bytes(path: Path) -> int:
    """Bytes of a file, 0 if it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def used_at(path: Path) -> float:
    """When a file was last used or written, in seconds; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def mark_used(path: Path) -> None:
    """Makes used_at() say now."""
    with contextlib.suppress(OSError):
        os.utime(path)
