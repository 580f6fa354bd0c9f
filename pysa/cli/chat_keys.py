"""The keyboard while nobody reads from it. Called by chat.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def keys_held_back() -> Iterator[None]:
    """What is typed while nobody reads is not shown, and not lost. Ctrl-C still interrupts.

    The terminal is put back as it was however the program ends, SIGTERM included. A dumb terminal stays as it is: there
    the terminal itself lets lines be edited.
    """
    try:
        import termios  # noqa: PLC0415  not everywhere

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    if os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    on_term = signal.signal(signal.SIGTERM, _end)
    quiet = [*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]
    termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, on_term)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
