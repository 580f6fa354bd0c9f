"""Damaged GGUFs: each either opens or raises a PysaError that names the file. An abort would end the test run.

fuzz_gguf.py does the same for as long as one lets it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.gguf_mutations import SMALL, exercise, mutate_bytes, write_damaged_keys
from helpers.tiny_gguf import random_plan, write_tiny_gguf

from pysa import _native


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / f"{request.param}.gguf"
    return write_tiny_gguf(path, vocab=request.param, plan=random_plan(1, 2, 1), **SMALL)


def test_sound_file_opens(sound: Path) -> None:
    assert exercise(_native, sound) == "ok"


def test_truncations(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    n_header = _native.gguf_read(str(sound))["data_offset"]
    path = tmp_path / "cut.gguf"
    cuts = sorted({*range(1, 64), *range(64, n_header + 200, 97), *range(n_header, len(data), 9001), len(data) - 1})
    for size in cuts:
        path.write_bytes(data[:size])
        assert exercise(_native, path) == "ModelFileError", f"cut to {size} bytes"


def test_damaged_bytes(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    n_header = _native.gguf_read(str(sound))["data_offset"]
    path = tmp_path / "bytes.gguf"
    outcomes = set()
    for seed in range(400):
        path.write_bytes(mutate_bytes(data, np.random.default_rng(seed), n_header))
        if path.stat().st_size > 0:
            outcomes.add(exercise(_native, path))
    assert {"ok", "ModelFileError"} <= outcomes


def test_damaged_keys(tmp_path: Path) -> None:
    outcomes = set()
    for seed in range(150):
        outcomes.add(exercise(_native, write_damaged_keys(tmp_path / "keys.gguf", np.random.default_rng(seed))))
    assert {"ok", "ModelFileError", "UnsupportedModelError", "PlanError"} <= outcomes
