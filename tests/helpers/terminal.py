"""A person's terminal for tests: a pseudo-terminal with a screen that is drawn as a terminal would draw it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

TIMEOUT_S = 60.0
PROMPT_READY = b"\x1b[?2004h"  # the line editor asks for pastes to be marked each time it begins
PYSA = (sys.executable, "-m", "pysa.cli.main")
# The terminal becomes the command's own, so that Ctrl-C is for it; tests in the background would have it ignored.
AS_A_PERSON = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs a command of pysa on a pseudo-terminal.

    Args:
        arguments: of `pysa`.
        columns: width of the window.
        rows: height of the window.
        cwd: the folder it runs in.
        command: what is run instead of `pysa`.
        environment: variables that are added; None removes one.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        columns: int = 80,
        rows: int = 50,
        cwd: Path | None = None,
        command: Sequence[str] | None = None,
        **environment: str | None,
    ) -> None:
        self.raw = b""
        self._mark = 0
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._fd, slave = pty.openpty()
        self._modes = termios.tcgetattr(self._fd)
        self.resize(columns, rows)
        known = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "INPUTRC")}
        merged = {**known, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-c", AS_A_PERSON, *(command or [*PYSA, *map(str, arguments)])],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={k: v for k, v in merged.items() if v is not None},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._fd)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without what is empty at the end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    @property
    def text(self) -> str:
        """The screen as one text; line ends are the window's."""
        return "\n".join(self.lines)

    @property
    def cursor(self) -> tuple[int, int]:
        """Row and column."""
        return self._screen.cursor.y, self._screen.cursor.x

    @property
    def answered(self) -> bytes:
        """What came since something was typed last."""
        return self.raw[self._mark :]

    def resize(self, columns: int, rows: int = 50) -> None:
        """Changes the window's size."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def type(self, text: str) -> None:
        """Types keys: `\\r` is Enter, `\\x03` Ctrl-C, `\\x7f` backspace."""
        self._mark = len(self.raw)
        os.write(self._fd, text.encode())

    def wait(self, found: bytes | str, n: int = 1) -> None:
        """Waits until something came `n` times since something was typed last, or since the beginning."""
        pattern = re.escape(found.encode() if isinstance(found, str) else found)
        self._read_until(lambda: len(re.findall(pattern, self.answered)) >= n, repr(found))

    def wait_prompt(self) -> None:
        """Waits for the next prompt."""
        self.wait(PROMPT_READY)
        self.wait_screen(lambda: self.lines[-1] == ">", "a prompt")

    def wait_screen(self, is_there: Callable[[], bool], what: str) -> None:
        """Waits until the screen is as wanted."""
        self._read_until(is_there, what)

    def signal(self, number: int) -> None:
        """Sends a signal to the command."""
        self._process.send_signal(number)

    def say(self, text: str) -> None:
        """Types a line and waits for the next prompt."""
        self.type(text + "\r")
        self.wait_prompt()

    def status(self) -> int:
        """Waits for the end; the exit status."""
        self._read_until(lambda: self._process.poll() is not None, "the end")
        while self._read(0.05):
            pass
        # Whoever comes next has a terminal that shows what is typed.
        assert termios.tcgetattr(self._fd)[:4] == self._modes[:4]
        return self._process.returncode

    def _read_until(self, is_there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_there():
            has_ended = self._process.poll() is not None
            if not self._read(0.2) and not is_there() and (has_ended or time.monotonic() > deadline):
                raise AssertionError(f"waited for {what}; got {self.answered!r}\non the screen:\n{self.text}")

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # nobody has the other side open any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
