"""Highest resident memory of a command, in bytes, as the last line of stdout.

    python bench/peak_memory.py COMMAND ARGUMENT...

A process of its own that imports little: what a process had before it became another program counts as that one's.
"""

import os
import sys


def main() -> None:
    """Runs the command with its output to stderr; exits with its status."""
    to_stderr = [(os.POSIX_SPAWN_DUP2, 2, 1)]
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=to_stderr)
    _, status, usage = os.wait4(process, 0)
    print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
