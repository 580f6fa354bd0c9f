"""Sessions on disk, found again by the tokens they begin with: a long document is read once, also by another process.

Which session is given, which one goes and what may stand for what is decided here; _prefix_files.py reads and writes.
There are no locks, and whatever is wrong with a file is a miss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pysa._arguments import PathLike, Tokens, check_bool, check_int, check_path, check_tokens
from pysa._prefix_files import (
    SIDECAR,
    STATE,
    WRITING,
    Entry,
    mark_used,
    read_entry,
    remove_entry,
    size_bytes,
    used_at,
    write_entry,
)
from pysa.errors import DeviceError, StateFileError

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.session import Session

log = logging.getLogger("pysa")

VERSION = 1  # of what a group means; another one never matches
ABANDONED_S = 3600.0  # what an ended process left half written is removed after this


def settings_of(session: Session) -> dict[str, Any]:
    """What two sessions must have in common for one to stand for the other."""
    native = session.native
    plan = json.dumps(native.plan, sort_keys=True)
    return {
        "n_ctx": native.n_ctx,
        "type_k": native.type_k,
        "type_v": native.type_v,
        "n_ubatch": native.n_ubatch,
        "n_slack": native.n_slack,
        "attention": native.attention,
        "v_skip": native.v_skip,
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
    }


class PrefixCache:
    """Keeps sessions in a folder, bounded in bytes; the least recently used go first.

    The files hold what was said, and only their owner may read them. Entries of another model file or of other settings
    are never given. Threads and processes may share a folder.

    Args:
        folder: made if it is missing, for its owner alone; the rights of an existing one are left as they are.
        max_bytes: of all entries together, 0 or more.
        min_tokens: shorter sessions are not kept and shorter prefixes not looked up, 1 or more.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: PathLike, max_bytes: int = 4 << 30, min_tokens: int = 256) -> None:
        self._max_bytes = check_int("max_bytes", max_bytes, 0, 2**63 - 1)
        self._min_tokens = check_int("min_tokens", min_tokens, 1, 2**31 - 1)
        self._folder = Path(check_path("folder", folder)).expanduser()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<pysa.PrefixCache {str(self._folder)!r}: {self.size_bytes} of {self._max_bytes} bytes>"

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(size_bytes(path) for suffix in (STATE, SIDECAR) for path in self._folder.glob(f"*-*{suffix}"))

    def find(
        self,
        model: Model,
        tokens: Tokens,
        settings: Mapping[str, Any],
        *,
        longer_than: int = 0,
        kv_offload: bool = True,
    ) -> Session | None:
        """The session that spares the most of a prompt, as it was saved; evaluate_prompt() takes it from there.

        Args:
            model: the model it is to belong to.
            tokens: the prompt.
            settings: as they were given to put(): settings_of() a session that would do.
            longer_than: tokens of the prompt that are held in memory already; what would keep no more is left alone.
            kv_offload: of the new session, as for Model.load_session.

        Returns:
            A new session, or None if nothing would keep min_tokens of the prompt.

        Raises:
            ArgumentError: an argument is of the wrong type or out of range.
        """
        ids = check_tokens(tokens, model.n_vocab, allow_empty=True)[:-1]  # the last one is evaluated in any case
        n_least = max(self._min_tokens, check_int("longer_than", longer_than, 0, 2**31 - 1) + 1)
        offload = check_bool("kv_offload", kv_offload)
        found = [(entry.usable(ids), entry) for entry in self._entries(_group(model, settings))]
        found.sort(key=lambda item: (-item[0], item[1].tokens.size))
        for n_usable, entry in found:
            session = self._load(model, entry, offload) if n_usable >= n_least else None
            if session is not None:
                return session
        return None

    def put(self, session: Session, settings: Mapping[str, Any] | None = None) -> None:
        """Keeps a session as it is now; an entry that it extends goes. What the disk refuses is a warning, no error.

        Where one entry does with less than min_tokens evaluated again what another one does, one of them is enough: a
        session that adds less than that to an entry is not written.

        Args:
            session: left as it is.
            settings: what must be the same for find(); None: settings_of(session).

        Raises:
            SessionBusyError: another thread is in this session.
        """
        tokens = np.array(session.tokens, dtype=np.int32)
        if tokens.size < self._min_tokens:
            return
        group = _group(session.model, settings_of(session) if settings is None else settings)
        others = list(self._entries(group))
        for other in others:
            if other.usable(tokens) > tokens.size - self._min_tokens:
                mark_used(other.sidecar)
                return
        new = self._write(session, group)
        if new is None:
            return
        for other in others:
            if new.usable(other.tokens) > other.tokens.size - self._min_tokens:
                remove_entry(other.sidecar)
        self._make_room(0)

    def clear(self) -> None:
        """Removes every entry, of all models."""
        self._make_room(self._max_bytes + 1)

    def _entries(self, group: str) -> Iterator[Entry]:
        for sidecar in self._folder.glob(f"{group}-*{SIDECAR}"):
            try:
                entry = read_entry(sidecar)
            except (OSError, ValueError) as error:
                self._drop(sidecar, error)
                continue
            if entry is not None:
                yield entry

    def _load(self, model: Model, entry: Entry, kv_offload: bool) -> Session | None:
        try:
            session = model.load_session(entry.state, kv_offload)
        except StateFileError as error:
            self._drop(entry.sidecar, error)
            return None
        except DeviceError as error:
            log.warning("prefix cache %s: an entry was not loaded: %s", self._folder, error)
            return None
        if session.tokens != entry.tokens.tolist():
            self._drop(entry.sidecar, "the session holds other tokens than its sidecar says")
            return None
        mark_used(entry.sidecar)
        return session

    def _drop(self, sidecar: Path, why: object) -> None:
        """Removes a damaged entry; there is nothing to say of one that another process has removed meanwhile."""
        if sidecar.exists() and sidecar.with_suffix(STATE).exists():
            log.warning("prefix cache %s: dropping a damaged entry: %s", self._folder, why)
        remove_entry(sidecar)

    def _write(self, session: Session, group: str) -> Entry | None:
        memory = session.memory()
        full = (memory["keys"] + memory["values"]) * memory["n_past"] // max(1, memory["n_rows"])
        n_bytes = (
            full + memory["window_keys"] + memory["window_values"] + memory["checkpoints"]
        )  # what is to be written
        if n_bytes > self._max_bytes:
            log.info("prefix cache %s: a session of %d bytes is too large to be kept", self._folder, n_bytes)
            return None
        self._make_room(n_bytes)
        try:
            return write_entry(session, self._folder, group, self._max_bytes)
        except (OSError, StateFileError) as error:
            log.warning("prefix cache %s: a session was not kept: %s", self._folder, error)
            return None

    def _make_room(self, n_bytes: int) -> None:
        """Removes what was left half written, and the least recently used until `n_bytes` more are allowed."""
        abandoned = time.time() - ABANDONED_S
        for path in self._folder.glob(f"{WRITING}*"):
            if used_at(path) < abandoned:
                shutil.rmtree(path, ignore_errors=True)
        for state in self._folder.glob(f"*-*{STATE}"):
            sidecar = state.with_suffix(SIDECAR)
            if not sidecar.exists() and used_at(state) < abandoned:
                remove_entry(sidecar)
        left = self.size_bytes
        for sidecar in sorted(self._folder.glob(f"*-*{SIDECAR}"), key=used_at):
            if left + n_bytes <= self._max_bytes:
                return
            left -= size_bytes(sidecar) + size_bytes(sidecar.with_suffix(STATE))
            remove_entry(sidecar)


def _group(model: Model, settings: Mapping[str, Any]) -> str:
    """What the names of entries that may stand for one another begin with."""
    text = json.dumps([VERSION, model.native.fingerprint, dict(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
