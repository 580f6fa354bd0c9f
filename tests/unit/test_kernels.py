"""The inner loops of the CPU attention (native/src/ops/cpu_kernels.h), and kernels for GPUs, equal plain ones.

The check is tests/native/kernel_check*.cpp, with its tolerances; `ninja kernel_check` builds it as a program, and
tests/native/check_arm64.sh runs it for NEON in an emulator.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

_oracle = pytest.importorskip("pysa._oracle", reason="built with the CMake option PYSA_TESTS")

FLAGS = {"avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, "avx2": {"avx2", "fma", "f16c"}}


def sets_expected() -> list[str]:
    """Names of the sets that this processor runs, best first."""
    if platform.machine() in {"aarch64", "arm64"}:
        return ["neon", "scalar"]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo to tell which instructions this processor has")
    line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return [name for name, flags in FLAGS.items() if flags <= set(line.split())] + ["scalar"]


def test_every_set_of_kernels_equals_plain_loops() -> None:
    assert _oracle.check_kernels() == sets_expected()


def test_gpu_kernels_equal_plain_sums(capfd: pytest.CaptureFixture[str]) -> None:
    """By the emulator: tests/native/gpu_check*.cpp, with its tolerances; `ninja gpu_check` builds it as a program."""
    n_failed = _oracle.check_gpu_kernels()
    assert n_failed == 0, capfd.readouterr().out
