"""`pysa devices`: the GPUs that --device can name, as a table or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from pysa.cli.console import Console
from pysa.cli.render import size_text
from pysa.device import Device, device_support, devices

COLUMNS = ("name", "memory", "free", "attention", "card")


def run(options: argparse.Namespace, console: Console) -> int:
    """Lists and prints; the exit status: 0 also where there is none."""
    found = devices()
    if options.json:
        console.json({"devices": [asdict(device) for device in found], "support": device_support()})
    elif found:
        console.lines(device_lines(found))
    else:
        console.lines([f"no GPU: {device_support()}"])
    return 0


def device_lines(found: Sequence[Device]) -> list[str]:
    """A table of the GPUs."""
    rows = [COLUMNS, *(_cells(device) for device in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(device: Device) -> tuple[str, ...]:
    card = device.description + (", integrated" if device.is_integrated else "")
    return (device.name, size_text(device.total_bytes), size_text(device.free_bytes), device.attention, card)
