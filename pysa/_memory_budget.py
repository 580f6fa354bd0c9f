"""What memory may be spent: as somebody wrote it, or as the machine has it. For pysa/memory.py."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pysa._arguments import check_int
from pysa.errors import ArgumentError

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
RESERVE_SHARE, RESERVE_BYTES = 0.1, 256 << 20  # of what is available, and at least, that is left to others

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", re.IGNORECASE | re.ASCII)


def parse_memory(memory: object, name: str = "memory") -> int:
    """Bytes of a number or of a text such as "8G"; `name`: how errors call it.

    Raises:
        ArgumentError: neither.
    """
    if not isinstance(memory, str):
        return check_int(name, memory, 1, 2**62)
    found = _SIZE.fullmatch(memory)
    if found is None:
        raise ArgumentError(
            f'{name}: no size: expected bytes or a text such as "8G", "512MiB" or "16GB", got {memory!r}'
        )
    number, unit, suffix = found.groups()
    base = 1000 if (suffix or "").upper() == "B" else 1024
    return check_int(name, int(float(number) * base ** _UNITS[unit.upper()]), 1, 2**62)


def available_bytes() -> int:
    """What may be spent now without taking it from others, less a reserve.

    What Linux says is available, within the process's cgroup; half the physical memory where that is not known.

    Raises:
        ArgumentError: nothing is known here.
    """
    found = _meminfo_available()
    if found is None:
        try:
            found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):
            raise ArgumentError("memory: not known on this machine: expected a size, got None; give one") from None
    left = _cgroup_left()
    found = found if left is None else min(found, left)
    return max(1, found - max(int(found * RESERVE_SHARE), RESERVE_BYTES))


def _meminfo_available() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _cgroup_left() -> int | None:
    """What a container's limit leaves; file pages that can be dropped do not count. None: there is no limit."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        dropped = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no file, or "max"
        return None
    return max(0, limit - used + (int(dropped[1]) if dropped else 0))
