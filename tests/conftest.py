"""Fixtures of all tests: tiny random models, made once a run, and a way to run the commands as a user does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_gguf import random_plan, write_tiny_gguf

N_THREADS = 2

# Makes the emulated GPU of test builds, EMU0, with so many MiB; nothing takes it unless told to (helpers/gpus.py).
os.environ.setdefault("PYSA_EMULATED_GPU", "2048")


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` takes real cards: the others count on the CPU. Child processes inherit it."""
    chosen: str = config.getoption("markexpr")
    if re.search(r"(?<!not )\bgpu\b", chosen) is None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session", autouse=True)
def outside_the_source_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Child processes look for pysa in the current folder first; they must find the installed one."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny GGUF; arguments as helpers.tiny_gguf.write_tiny_gguf has them, equal ones share a file."""
    folder = tmp_path_factory.mktemp("tiny_gguf")
    made: dict[str, Path] = {}

    def make(arch: str = "llama", **options: Any) -> Path:
        key = repr((arch, sorted(options.items())))
        if key not in made:
            made[key] = write_tiny_gguf(folder / f"{len(made)}-{arch}.gguf", arch, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_plan() -> dict[str, Any]:
    """A plan for shared_gguf's model with owners, followers and local heads."""
    return random_plan(4, 6, 2, seed=3, n_sink=4, n_recent=24)


@pytest.fixture(scope="session")
def shared_gguf(tiny_gguf: Callable[..., Path], tiny_plan: dict[str, Any]) -> Path:
    """A tiny llama of four layers with a sharing plan, a SentencePiece vocabulary and a context of 2048."""
    return tiny_gguf("llama", n_layer=4, vocab="llama", plan=tiny_plan)


@pytest.fixture(scope="session")
def dense_gguf(tiny_gguf: Callable[..., Path]) -> Path:
    """The same model without a plan."""
    return tiny_gguf("llama", n_layer=4, vocab="llama")


@pytest.fixture
def shared_model(shared_gguf: Path) -> Iterator[Any]:
    """shared_gguf, opened with two threads."""
    import pysa

    with pysa.Model(shared_gguf, n_threads=N_THREADS) as model:
        yield model


@pytest.fixture
def run_pysa(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `pysa` in a process of its own, in an empty folder."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pysa.cli.main", *map(str, arguments)]
        defaults: dict[str, Any] = {"cwd": tmp_path, "timeout": 120, "capture_output": True, "encoding": "utf-8"}
        return subprocess.run(command, check=False, **{**defaults, **options})

    return run
