"""GPUs for tests: the real ones of this machine, and one that is emulated on the CPU in builds with PYSA_TESTS.

The emulated one has memory of its own and runs the same kernels, but its graphs are ggml's CPU backend's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pysa

EMULATED = "EMU0"  # with the memory of PYSA_EMULATED_GPU, which tests/conftest.py sets

# Largest difference of a logit from the float64 reference that rounds its cache the same way, as a share of the logits'
# range, of the kernels in native/src/cuda; (tokens evaluated at once: one or several, cache type). About three times
# what was measured over the table of cases.
TOLERANCES: dict[tuple[str, str], float] = {
    ("one", "f32"): 8e-4,  # weights are f16 between score and value
    ("several", "f32"): 9e-3,  # queries, keys, values and weights are f16 for the tensor cores, up to five layers deep
    # From here on a difference can tip a row's element over to the type's next step.
    ("one", "f16"): 1e-3,
    ("several", "f16"): 9e-3,
    ("one", "bf16"): 3e-3,
    ("several", "bf16"): 9e-3,
    ("one", "q8_0"): 1.5e-2,  # a step is 1/127 of the largest element of its block of 32
    ("several", "q8_0"): 2.5e-2,
    ("one", "q4_0"): 6.5e-2,  # a step is 1/8
    ("several", "q4_0"): 7.5e-2,
}


def real_gpu() -> str | None:
    """The first GPU that is none of ours."""
    names = [device.name for device in pysa.devices() if device.name != EMULATED]
    return names[0] if names else None


def emulated_gpu() -> str:
    """EMULATED, or the test is skipped where the build has none."""
    if all(device.name != EMULATED for device in pysa.devices()):
        pytest.skip("the build has no emulated GPU: PYSA_TESTS is off")
    return EMULATED


def in_child(source: str, *arguments: str | Path, **variables: str) -> str:
    """What a Python program prints, in a process with these environment variables; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_gpu(path: Path, device: str, **options: Any) -> pysa.Model:
    """The model with all its layers on the device, or as `options` say."""
    return pysa.Model(path, **{"n_threads": 1, "device": device, "n_gpu_layers": 999, **options})


def check_going_back(session: pysa.Session, tokens: NDArray[Any]) -> None:
    """An empty session gives bit by bit the same after a truncation, though its ring was overwritten meanwhile."""
    session.eval(tokens[:90])
    session.checkpoint()
    before = session.eval(tokens[90:94], logits="all")
    for i in range(94, 160, 3):
        session.eval(tokens[i : i + 3])
    session.truncate(90)
    np.testing.assert_array_equal(session.eval(tokens[90:94], logits="all"), before)
