"""What against_llama_cpp.py compares: a session of pysa, of llama_decode in this process, or llama-bench in its own.

Each reaches a depth, decodes some tokens and evaluates a prompt; times are taken here, or by llama-bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# llama.cpp rotates the rows of a quantised cache, which costs it time and which pysa does not do.
os.environ.setdefault("LLAMA_ATTN_ROT_DISABLE", "1")

import pysa
from pysa import Plan
from pysa.cli.bench import N_BATCH, N_HELD, Reading


@dataclass(frozen=True)
class Setup:
    """What both sides have in common: file, threads, type of K and V, room in the cache, way to a depth, device."""

    path: str
    n_threads: int
    type: str
    n_ctx: int
    fill: bool
    device: str = "cpu"
    n_gpu_layers: int = 0


class Side(Protocol):
    """One engine with an empty cache."""

    def reach(self, depth: int) -> None:
        """Makes the cache `depth` tokens long."""

    def decode(self, n: int) -> list[float]:
        """Decodes n tokens; milliseconds per token, one sample or more."""

    def read_bytes(self) -> int | None:
        """Cache bytes that a token read on average since the depth was reached; None where only the engine knows."""

    def n_splits(self) -> int | None:
        """Parts of the last step between which CPU and GPU took turns; None where only the engine knows."""

    def prompt(self, n: int) -> float:
        """Evaluates a prompt into an empty cache; seconds."""

    def close(self) -> None:
        """Lets the memory go."""


class InProcess:
    """A session that evaluates tokens in this process: `session.eval(tokens, logits)`."""

    def __init__(self, session: Any, setup: Setup) -> None:
        self._session, self._setup = session, setup
        self._rng = np.random.default_rng(0)

    def _eval(self, n: int) -> float:
        """Evaluates n random tokens at once, for the last one's logits; seconds."""
        tokens = self._rng.integers(0, 256, n).astype(np.int32)
        start = time.perf_counter()
        self._session.eval(tokens, "last")
        return time.perf_counter() - start

    def reach(self, depth: int) -> None:
        if depth == 0:
            return
        self._eval(min(depth, N_HELD) if self._setup.fill else depth)
        if depth > self._session.n_past:
            self._fill(depth)

    def _fill(self, depth: int) -> None:
        raise NotImplementedError

    def decode(self, n: int) -> list[float]:
        self._eval(1)  # wakes the threads
        return [1e3 * self._eval(1) for _ in range(n)]

    def read_bytes(self) -> int | None:
        return None

    def n_splits(self) -> int | None:
        return None

    def prompt(self, n: int) -> float:
        return self._eval(n)

    def close(self) -> None:
        self._session = None


class PysaSide(InProcess):
    """A pysa.Session; `plan` is "dense" or a Plan, `v_skip` as for Model.session."""

    def __init__(self, model: pysa.Model, plan: Plan | str, v_skip: float | None, setup: Setup) -> None:
        super().__init__(model.session(setup.n_ctx, setup.type, setup.type, plan=plan, v_skip=v_skip), setup)
        self._depth, self._reading = 0, Reading(self._session)

    def reach(self, depth: int) -> None:
        super().reach(depth)
        self._depth, self._reading = depth, Reading(self._session)

    def read_bytes(self) -> int | None:
        return self._reading.finish(self._session.n_past - self._depth)[0]

    def n_splits(self) -> int | None:
        return int(self._session.n_splits)

    def _fill(self, depth: int) -> None:
        self._session._fill(depth, seed=depth)


class OracleSide(InProcess):
    """llama_decode in this process; all share one model. `flash` is 0 or 1, as for llama-bench."""

    _first: Any = None

    def __init__(self, flash: int, setup: Setup) -> None:
        try:
            from pysa import _oracle  # noqa: PLC0415
        except ImportError:
            raise SystemExit("--with oracle: pysa._oracle is missing: expected a build with PYSA_TESTS=ON") from None

        def oracle(n_ctx: int, **options: Any) -> Any:
            return _oracle.Oracle(setup.path, n_ctx, setup.n_threads, setup.type, setup.type, **options)

        if OracleSide._first is None:
            OracleSide._first = oracle(32, flash_attn="on")  # holds the model
        options = {"flash_attn": "on" if flash else "off", "share": OracleSide._first}
        super().__init__(oracle(setup.n_ctx, **options), setup)

    def _fill(self, depth: int) -> None:
        self._session.fill(depth, seed=depth)


def llama_bench_command(program: str, flash: int, setup: Setup, *options: object) -> list[str]:
    """llama-bench on the same file, threads, types and layers of the same GPU."""
    command = [program, "-m", setup.path, "-t", setup.n_threads, "-ctk", setup.type, "-ctv", setup.type, "-fa", flash]
    # Without -dev, a build with a GPU backend computes large products there though no layer is.
    command += ["-dev", setup.device, "-ngl", setup.n_gpu_layers] if setup.n_gpu_layers else ["-dev", "none"]
    return [str(part) for part in [*command, *options]]


def stdout_of(command: list[str], where: str) -> str:
    """What a command prints; SystemExit with its last message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{where}: status {done.returncode}: {reason}")
    return done.stdout


class LlamaBenchSide:
    """llama-bench: a process per measurement, whose depth is a prompt evaluated. It repeats with the cache it has."""

    def __init__(self, program: str, flash: int, setup: Setup, n_repeats: int) -> None:
        self._program, self._flash, self._setup = program, flash, setup
        self._n_repeats, self._depth = n_repeats, 0

    def reach(self, depth: int) -> None:
        self._depth = depth

    def decode(self, n: int) -> list[float]:
        return [ns / 1e6 / n for ns in self._run("-d", self._depth, "-n", n, "-p", 0, "-r", self._n_repeats)]

    def read_bytes(self) -> int | None:
        return None

    def n_splits(self) -> int | None:
        return None

    def prompt(self, n: int) -> float:
        # Its warm-up is the whole prompt.
        warm_up = ["--no-warmup"] if n >= N_BATCH else []
        return self._run("-p", n, "-n", 0, "-r", 1, *warm_up)[0] / 1e9

    def _run(self, *options: object) -> list[float]:
        """Nanoseconds of each repetition."""
        command = llama_bench_command(self._program, self._flash, self._setup, "-o", "json", *options)
        return [float(ns) for ns in json.loads(stdout_of(command, self._program))[0]["samples_ns"]]

    def close(self) -> None:
        """Nothing is held."""
