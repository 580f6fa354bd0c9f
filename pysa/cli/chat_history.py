"""What was typed in earlier chats: a file that only its owner can read. Called by chat_input.py."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

HISTORY_BYTES = 1 << 20  # beyond that, the older half goes


def history_path() -> Path:
    """The file that keeps what was typed, in the user's folder for a program's state."""
    if os.name == "nt":
        folder = os.environ.get("LOCALAPPDATA") or "~"
    else:
        folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(folder).expanduser() / "pysa" / "chat_history"


def open_history(path: Path | None) -> History:
    """A history in a file that only its owner can read; one in memory where that cannot be had."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
        _shorten(path)
    except OSError:
        return InMemoryHistory()
    return _SafeHistory(path)


class _SafeHistory(FileHistory):
    """A full disk loses what is typed for the next time, not the chat."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _shorten(path: Path) -> None:
    raw = path.read_bytes()
    if len(raw) > HISTORY_BYTES:
        _, _, kept = raw[len(raw) // 2 :].partition(b"\n# ")
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        beside.write_bytes(b"\n# " + kept)
        beside.replace(path)
