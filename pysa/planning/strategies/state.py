"""What a search has measured, on disk: an interrupted search asks here first and continues where it was.

A folder: `settings.json`, what the measurements belong to, and `costs.bin`, one record per plan and sample, appended as
it is measured. A record that was cut off by a crash is dropped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pysa.errors import StateFileError
from pysa.plan import Plan
from pysa.planning.strategies.cost import SampleCost

VERSION = 1
HEADER = struct.Struct("<II")  # bytes of the record, their CRC-32

Key = tuple[str, int]  # plan_digest(), number of the sample


def plan_digest(plan: Plan) -> str:
    """Names what a plan computes, whatever its label and figures are."""
    digest = hashlib.sha256(f"{plan.distant} {plan.n_sink} {plan.n_recent} {plan.skip_gate} {plan.enabled}".encode())
    digest.update(plan.score_layer.tobytes() + plan.score_head.tobytes())
    if plan.mass_bias is not None and plan.mass_bias.any():
        digest.update(plan.mass_bias.tobytes())
    return digest.hexdigest()


class CostStore:
    """Measured costs by plan and sample; in memory alone where there is no folder.

    Args:
        folder: made if absent.
        settings: what the measurements depend on besides plan and sample: model, texts, window.

    Raises:
        StateFileError: the folder holds measurements of other settings, or is no such folder.
        OSError: it cannot be read or written.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._costs: dict[Key, SampleCost] = {}
        self._path = folder / "costs.bin" if folder is not None else None
        if folder is not None and self._path is not None:
            check_settings(folder, settings)
            self._read(self._path)

    def __len__(self) -> int:
        return len(self._costs)

    def get(self, key: Key) -> SampleCost | None:
        """What was measured, if it was."""
        return self._costs.get(key)

    def put(self, key: Key, cost: SampleCost) -> None:
        """Keeps a measurement, on disk too."""
        self._costs[key] = cost
        if self._path is None:
            return
        payload = _pack(key, cost)
        with open(self._path, "ab") as out:
            out.write(HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
            out.flush()
            os.fsync(out.fileno())

    def _read(self, path: Path) -> None:
        raw = path.read_bytes() if path.exists() else b""
        end = 0
        while end + HEADER.size <= len(raw):
            size, crc = HEADER.unpack_from(raw, end)
            payload = raw[end + HEADER.size : end + HEADER.size + size]
            if len(payload) < size or zlib.crc32(payload) != crc:
                break
            key, cost = _unpack(payload)
            self._costs[key] = cost
            end += HEADER.size + size
        if end < len(raw):
            with open(path, "r+b") as out:
                out.truncate(end)


def _pack(key: Key, cost: SampleCost) -> bytes:
    fields = asdict(cost)
    features = fields.pop("features")
    out = io.BytesIO()
    np.savez(out, features=features, facts=np.array(json.dumps({"key": key, **fields})))
    return out.getvalue()


def _unpack(payload: bytes) -> tuple[Key, SampleCost]:
    with np.load(io.BytesIO(payload)) as data:
        facts = json.loads(str(data["facts"]))
        digest, sample = facts.pop("key")
        return (digest, sample), SampleCost(**facts, features=data["features"])


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the measurements in a folder belong to, or compares it with what is written there.

    Raises:
        StateFileError: the folder belongs to something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "settings.json", {"version": VERSION, **settings}
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StateFileError(f"{path}: damaged: expected a JSON object; remove its folder to begin again")
    other = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if other:
        key = other[0]
        wanted, got = (repr(known[key]) if key in known else "none" for known in (settings, found))
        raise StateFileError(
            f"{folder}: measured with other settings: {', '.join(other)}: expected {wanted}, got {got}; remove the "
            "folder or name another one with --state"
        )
