"""What the command says when it cannot go on: one line on stderr and an exit status. The traceback needs --verbose."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from pysa.errors import PysaError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class UsageError(Exception):
    """The command line itself is wrong."""


def one_line(message: str) -> str:
    """A message of several lines (faults, one a line) as one."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    if len(lines) < 2:
        return "".join(lines)
    return f"{lines[0]} {'; '.join(lines[1:])}"


def guarded(run: Callable[[], int], verbose: bool) -> int:
    """Runs a command; any exception becomes its line on stderr.

    Returns:
        The exit status: 0 or the command's own, 1 failure, 2 usage, 130 Ctrl-C, 141 nobody reads the output.
    """
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, verbose)
    except UsageError as error:
        return _fail(f"{error}; see pysa --help", EXIT_USAGE, verbose)
    except (PysaError, OSError) as error:
        return _fail(str(error), EXIT_FAILURE, verbose)
    except MemoryError:
        return _fail("out of memory", EXIT_FAILURE, verbose)
    except Exception as error:  # a fault of pysa's own still ends in one line
        return _fail(f"internal error: {type(error).__name__}: {error}; --verbose shows where", EXIT_FAILURE, verbose)


def _fail(message: str, status: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(f"pysa: error: {one_line(message)}", file=sys.stderr)
    return status
