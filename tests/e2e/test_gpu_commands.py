"""The commands on a GPU give what they give on the CPU, and say what lies there. The GPU is the emulated one.

Attention is `composed`, which is the same bit for bit; tests/property/test_gpu_attention.py has the kernels.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.gpus import EMULATED, emulated_gpu
from helpers.talking_gguf import END, START, write_talking_gguf

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMPOSED = ("-t", "1", "--attention", "composed")
GPU = ("--device", EMULATED)


@pytest.fixture(autouse=True)
def device() -> str:
    return emulated_gpu()


def out_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_generate(shared_gguf: Path, run_pysa: Run) -> None:
    arguments = ("generate", shared_gguf, "-p", "the thing and", "-n", "6", "-c", "256", *COMPOSED)
    expected = out_of(run_pysa(*arguments, "--device", "cpu", "--json"))
    where = ("device", "n_gpu_layers", "n_cached_layers")
    for options, placed in (
        (("-ngl", "all"), (EMULATED, 5, 4)),
        (("-ngl", "3", "--no-kv-offload"), (EMULATED, 3, 0)),
        (("-ngl", "0"), ("cpu", 0, 0)),
    ):
        found = out_of(run_pysa(*arguments, *GPU, *options, "--json"))
        assert found["tokens"] == expected["tokens"]
        assert found["cache"] == expected["cache"]
        assert tuple(found["placement"][name] for name in where) == placed

    said = run_pysa(*arguments, *GPU).stderr.splitlines()  # as many as fit: all of so small a model
    assert [line.startswith(f"device      {EMULATED}: 5 of 5 layers (") for line in said].count(True) == 1
    assert "device" not in run_pysa(*arguments).stderr


def test_chat(tmp_path: Path, run_pysa: Run) -> None:
    path = write_talking_gguf(tmp_path / "m.gguf", {START: "yes", "yes": " sir", " sir": END})
    arguments = ("chat", path, "-p", "is it?", "--temp", "0", "-c", "256", *COMPOSED)
    done = run_pysa(*arguments, *GPU, "--status")
    assert (done.returncode, done.stdout) == (0, "yes sir\n")
    assert done.stderr.splitlines()[-1].startswith(f"{EMULATED}: 3 of 3 layers (")
    found = out_of(run_pysa(*arguments, *GPU, "--json"))
    assert (found["answer"], found["placement"]["n_gpu_layers"]) == ("yes sir", 3)
    assert found["memory"]["device"] == found["placement"]["cache_bytes"] > 0


def test_bench(shared_gguf: Path, run_pysa: Run) -> None:
    arguments = ("bench", shared_gguf, "-d", "300", "-n", "2", *COMPOSED, *GPU)
    found = out_of(run_pysa(*arguments, "--json"))
    model, (_, deep) = found["model"], found["rows"]
    assert (model["placement"]["device"], model["card"]) == (EMULATED, "emulated GPU, for tests")
    assert (found["bandwidth_of"], found["bandwidth_gb_per_s"] > 0) == (EMULATED, True)
    if deep["attention_gb_per_s"] is not None:  # it may be lost in the noise
        assert deep["share"] == deep["attention_gb_per_s"] / found["bandwidth_gb_per_s"]
    assert found["device_weights_bytes"] >= model["placement"]["weights_bytes"] > 0
    assert deep["device_bytes"] >= deep["cache"]["total"] > 0
    lines = run_pysa(*arguments).stdout.splitlines()
    assert "card    emulated GPU, for tests; " in "\n".join(lines)
    assert "\nmemory  copied, read and written at " in "\n".join(lines)
    assert lines[-1].split()[-1] in ("KiB", "MiB")


def test_perplexity(shared_gguf: Path, tmp_path: Path, run_pysa: Run) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the thing and another thing " * 20)
    arguments = ("perplexity", shared_gguf, "--text", text, "-c", "64", "--chunks", "1", *COMPOSED, "--json")
    expected, found = (out_of(run_pysa(*arguments, *where)) for where in (("--device", "cpu"), GPU))
    assert found["perplexity"] == expected["perplexity"]
    assert (found["model"]["device"], found["model"]["n_gpu_layers"]) == (EMULATED, 5)


def test_the_plans_commands_compute_on_the_cpu(shared_gguf: Path, run_pysa: Run) -> None:
    done = run_pysa("inspect", shared_gguf, "--json")
    assert out_of(done)["model"]["n_layer"] == 4
    refused = run_pysa("plan", shared_gguf, "--text", "t", "-o", "p", "-ngl", "1")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
