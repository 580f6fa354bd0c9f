"""Gives memory that was freed back to the system. Called where sessions are closed for good."""

from __future__ import annotations

import sys


def give_back() -> None:
    """Has the C library return what it keeps of freed blocks; nothing where it has no such function.

    glibc keeps freed blocks of a few MiB, as a cache's are, for the process's own next use.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415  not needed before something ends

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
