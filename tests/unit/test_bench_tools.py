"""The scripts in bench/ that do not only measure: models by shape, the plan that saves a share, a cache filled up."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from helpers.gpus import emulated_gpu

import pysa
from pysa import Plan

BENCH = Path(__file__).resolve().parents[2] / "bench"
F32 = {"type_k": "f32", "type_v": "f32"}
TINY = {"n_layer": 3, "n_embd": 96, "n_ff": 160, "n_vocab": 300, "n_ctx": 512}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of bench/."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture(scope="module")
def oracle_module() -> Any:
    """llama_decode of the same build; llama.cpp's rotation of quantised rows is off, as in the benchmarks."""
    os.environ.setdefault("LLAMA_ATTN_ROT_DISABLE", "1")
    return pytest.importorskip("pysa._oracle", reason="built with the CMake option PYSA_TESTS")


# -- models by shape ---------------------------------------------------------------------------------------------------


def test_qwen3_has_the_shape_of_the_real_one(tool: Callable[[str], Any]) -> None:
    shape = tool("make_model").SHAPES["qwen3-0.6b"]
    assert (shape.arch, shape.n_layer, shape.n_embd, shape.n_head, shape.n_head_kv) == ("qwen3", 28, 1024, 16, 8)
    assert (shape.n_embd_head, shape.n_ff, shape.n_vocab, shape.n_ctx) == (128, 3072, 151936, 40960)
    assert (shape.tied, shape.qk_norm, shape.rope_base, shape.eps) == (True, True, 1e6, 1e-6)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b"])
def test_a_model_of_each_kind_runs_as_in_llama_cpp(
    name: str, tool: Callable[[str], Any], oracle_module: Any, tmp_path: Path
) -> None:
    make_model = tool("make_model")
    shape = replace(make_model.SHAPES[name], **TINY, n_head=6, n_head_kv=2, n_embd_head=32)
    path = tmp_path / "m.gguf"
    make_model.write(path, shape, seed=1)
    tokens = np.arange(40) % 256
    with pysa.Model(path, n_threads=1) as model:
        assert (model.arch, model.n_vocab, model.n_ctx_train) == (shape.arch, 300, 512)
        ours = model.session(**F32).eval(tokens, logits="all")
    theirs = oracle_module.Oracle(str(path), 64, 1, flash_attn="off", **F32).eval(tokens.tolist())
    # The same kernels multiply the q4_0 matrices, but their activations are rounded to 8 bits, and a last bit before
    # that can tip one over to the next step. (With an f16 cache llama.cpp's two attentions differ by 0.02 here.)
    error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
    assert error < 0.005


def test_random_weights_have_no_mean(tool: Callable[[str], Any]) -> None:
    """A mean would add up through the layers until all keys look alike, and most of the distance weigh nothing."""
    blocks = tool("make_model").q4_0(np.random.default_rng(3), 64, 1024)
    weights = dequantize(blocks, GGMLQuantizationType.Q4_0)
    assert abs(weights.mean()) < 4 * weights.std() / weights.size**0.5
    assert weights.std() == pytest.approx(1024**-0.5, rel=0.02)


@pytest.mark.parametrize("arguments", [["tiny"], ["--shape", "tiny"]])
def test_a_shape_is_an_argument_or_an_option(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, BENCH / "make_model.py", *arguments, "-o", path], check=True, capture_output=True)
    with pysa.Model(path, use_repack=False) as model:
        assert (model.n_layer, model.n_head, model.n_head_kv, model.n_vocab) == (4, 8, 2, 512)


def test_no_shape_or_two_are_refused(tmp_path: Path) -> None:
    for arguments in ([], ["tiny", "--shape", "tiny"]):
        command = [sys.executable, BENCH / "make_model.py", *arguments, "-o", tmp_path / "no.gguf"]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 2


# -- the plan that saves a share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_head_kv", "saving"),
    [(10, 6, 2, 0.35), (16, 32, 8, 0.3520508), (28, 16, 8, 0.3515625), (32, 32, 8, 0.3503418)],
)
def test_the_plan_saves_35_percent_at_32k(
    n_layer: int, n_head: int, n_head_kv: int, saving: float, tool: Callable[[str], Any]
) -> None:
    plan = tool("save_plan").saving_plan(n_layer, n_head, n_head_kv, 0.35)
    dense = 32768 * n_layer * n_head_kv * 2 * 128
    assert 1 - plan.cache_bytes(32768, n_head_kv, 128, 128)["total"] / dense == pytest.approx(saving)
    groups = plan.kinds().reshape(n_layer, n_head_kv, -1)
    assert ((groups == "owner").all(2) | (groups == "follower").all(2)).all()
    # One follower fewer would save less than was asked for.
    by_one = 0.5 * (1 - 4096 / 32768) / (n_layer * n_head_kv)
    assert saving - by_one < 0.35
    # Head for head, from the nearest owner before it.
    for il, h in np.argwhere(plan.kinds() == "follower"):
        assert plan.score_head[il, h] == h
        assert plan.score_layer[il, h] == max(i for i in range(il) if plan.kinds()[i, h] == "owner")


def test_more_than_following_can_save_is_refused(tool: Callable[[str], Any]) -> None:
    save_plan = tool("save_plan")
    for save, n in ((0.45, 32768), (0.1, 4096), (0.0, 32768)):
        with pytest.raises(ValueError, match=r"save: expected above 0, at most .* got"):
            save_plan.saving_plan(10, 6, 2, save, n)


def test_the_plan_is_written_and_loads(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_gguf("llama", n_layer=10)
    command = [sys.executable, BENCH / "save_plan.py", path, "-o", tmp_path / "plan.json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "saves 35.00% at 32,768 tokens" in done.stdout
    with pysa.Model(path) as model:
        sizes = model.cache_bytes(32768, Plan.load(tmp_path / "plan.json"))
    assert 1 - sizes["total"] / sizes["dense"] == pytest.approx(0.35)


# -- llama.cpp's cache, filled up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_k", "type_v", "flash"),
    [
        ("f16", "f16", "off"),
        ("f16", "f16", "on"),
        ("f32", "bf16", "off"),
        ("q8_0", "f16", "off"),
        ("q4_0", "q8_0", "on"),
    ],
)
def test_rows_kept_where_they_are_change_nothing(
    type_k: str, type_v: str, flash: str, dense_gguf: Path, oracle_module: Any
) -> None:
    tokens = list(range(3, 40))
    logits = {}
    for n in (None, len(tokens)):
        oracle = oracle_module.Oracle(str(dense_gguf), 256, 1, type_k, type_v, flash_attn=flash)
        oracle.eval(tokens, "last")
        if n is not None:
            oracle.fill(n)
        logits[n] = oracle.eval([5, 6], "all")
    np.testing.assert_array_equal(logits[None], logits[len(tokens)])


@pytest.mark.parametrize("flash", ["off", "on"])
def test_a_filled_cache_holds_copies_of_rows_held(flash: str, dense_gguf: Path, oracle_module: Any) -> None:
    first = oracle_module.Oracle(str(dense_gguf), 512, 1, flash_attn=flash)
    # From one row every copy is that row, and attention over equal rows is the row, whatever their weights are.
    other = oracle_module.Oracle(str(dense_gguf), 512, 1, flash_attn=flash, share=first)
    for oracle, n in ((first, 2), (other, 400)):
        oracle.eval([7], "last")
        oracle.fill(n)
        assert oracle.n_past == n
    logits = [oracle.eval([9], "last") for oracle in (first, other)]
    assert all(np.isfinite(row).all() for row in logits)
    assert not np.array_equal(*logits)
    again = oracle_module.Oracle(str(dense_gguf), 512, 1, flash_attn=flash, share=first)
    again.eval([7], "last")
    again.fill(400)
    np.testing.assert_array_equal(again.eval([9], "last"), logits[1])


def test_fill_refuses_what_does_not_fit(dense_gguf: Path, oracle_module: Any) -> None:
    oracle = oracle_module.Oracle(str(dense_gguf), 256, 1)
    with pytest.raises(RuntimeError, match="n_past"):
        oracle.fill(10)
    oracle.eval([1, 2, 3], "last")
    for n in (2, 257):
        with pytest.raises(RuntimeError, match=rf"expected n_past \(at least 1\) .. n_ctx, here 3..256, got {n}"):
            oracle.fill(n)


# -- both in one run ---------------------------------------------------------------------------------------------------


def test_the_comparison_prints_a_row_per_depth(
    tiny_gguf: Callable[..., Path], oracle_module: Any, tmp_path: Path
) -> None:
    path = tiny_gguf("llama", n_layer=10, n_ctx=8192)
    command = [sys.executable, BENCH / "against_llama_cpp.py", path, "-d", "90", "-n", "4", "-t", "1", "-r", "1"]
    command += ["--types", "f16,q8_0", "--prompts", "20", "--memory", "30", "--json", tmp_path / "out.json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith(("| f16", "| q8_0"))]
    assert rows[:6] == ["f16, 0", "f16, 90", "q8_0, 0", "q8_0, 90", "f16, 20", "q8_0, 20"]
    assert "depth filled with copied rows" in done.stdout
    assert rows[6:] == ["f16, pysa", "f16, plan", "f16, -fa 0", "f16, -fa 1", "q8_0, pysa", "q8_0, plan", "q8_0, -fa 1"]
    assert (tmp_path / "out.json").stat().st_size > 0


# -- on a GPU ----------------------------------------------------------------------------------------------------------


FAKE_BENCH = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
echo '[{"samples_ns": [4000000, 4000000]}]'
"""


def test_a_comparison_on_a_gpu_says_where_and_what_it_takes(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    gpu = emulated_gpu()
    program = tmp_path / "llama-bench"
    program.write_text(FAKE_BENCH)
    program.chmod(0o755)
    path = tiny_gguf("llama", n_layer=10, n_ctx=8192)
    command = [sys.executable, BENCH / "against_llama_cpp.py", path, "-d", "300", "-n", "2", "-t", "1", "-r", "1"]
    command += ["--device", gpu, "-ngl", "all", "--with", "llama-bench", program, "--json", tmp_path / "out.json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "; EMU0 (emulated GPU, for tests), 11 layers there" in done.stdout.splitlines()[0]
    for call in (tmp_path / "calls").read_text().splitlines():
        assert "-fa 1 -dev EMU0 -ngl 11 " in call
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["machine"]["device"], found["machine"]["n_gpu_layers"], found["bandwidth_of"]) == (gpu, 11, gpu)
    assert [(depth, len(speeds)) for depth, speeds in found["bandwidth"].items()] == [("f16 0", 2), ("f16 300", 2)]
    assert {row["side"]: row["n_splits"] for row in found["decode"]} == {"pysa": 1, "plan": 1, "-fa 1": None}
    assert " | memory copied, GB/s |" in done.stdout
    assert list(found["device_bytes"]) == ["f16, 0, pysa", "f16, 0, plan", "f16, 300, pysa", "f16, 300, plan"]
    assert found["model_device_bytes"] > 0
    # 512 rows of keys and values in ten layers of two heads, and what is computed besides.
    with pysa.Model(path, device="cpu") as model:
        assert found["device_bytes"]["f16, 300, pysa"] >= model.cache_bytes(512)["total"]
    assert "| f16, 300, plan | " in done.stdout


def test_all_that_a_gpu_is_measured_for_runs_from_end_to_end(tmp_path: Path) -> None:
    """On the emulated GPU, so no speed is looked at."""
    program = tmp_path / "build" / "bin" / "llama-bench"
    program.parent.mkdir(parents=True)
    program.write_text(FAKE_BENCH)
    program.chmod(0o755)
    chosen = {"SHAPES": "tiny", "PLAN": "save30", "DEPTHS": "0,40", "PROMPTS": "20", "TYPES": "f16", "REPEATS": "1"}
    chosen |= {"TEXT": "", "DIR": str(tmp_path)}
    environment = {**os.environ, **{f"PYSA_BENCH_{name}": value for name, value in chosen.items()}}
    command = [BENCH.parent / "tests" / "gpu" / "bench.sh", sys.executable, tmp_path / "build", emulated_gpu()]
    out = tmp_path / "out"
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**environment, "OUT": str(out)})
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "tiny.json").read_text())["machine"]["device"] == "EMU0"
    assert (out / "tiny.md").read_text() + (out / "targets.md").read_text() == done.stdout
    assert "| splits of a step | at most 1 | 1.00 (f16, 0, pysa) | met |" in done.stdout
    assert "| decoding with the plan at 131,072 | at least 1.35 |  | not measured |" in done.stdout


def test_targets_are_met_by_the_worst_figure(tool: Callable[[str], Any]) -> None:
    report, gpu_targets = tool("report"), tool("gpu_targets")
    results = report.Results("1b.gguf", 1, "llama-bench", "prompt", {"saving at 32768": 0.35}, None, {})
    # Attention reads 4 MB and 2.6 MB more than at depth 0.
    for type_, times in (("f16", [1, 5, 4, 6]), ("q8_0", [1, 4, 3, 4])):
        for depth, side, ms in zip((0, 32768, 32768, 32768), ("pysa", "pysa", "plan", "-fa 1"), times, strict=True):
            size = 0 if depth == 0 else {"pysa": 4_000_000, "plan": 2_600_000, "-fa 1": 0}[side]
            results.decode.append(report.Decode(type_, depth, side, [float(ms)], size, 1 if side != "-fa 1" else None))
        results.bandwidth[f"{type_} 32768"] = [1.25, 1.25]
    for side, seconds in (("pysa", 2.0), ("plan", 1.0), ("-fa 1", 1.5)):
        results.prompts.append(report.Prompt("f16", 32768, side, [seconds]))
    results.device_bytes = {"f16, 32768, pysa": 1000, "f16, 32768, plan": 660}
    found = json.loads(json.dumps(results.to_json()))
    cells = [target.cells()[2:] for target in gpu_targets.targets(found)]
    assert cells == [
        ["1.00 (q8_0, 32,768, pysa)", "met"],
        ["1.33 (q8_0, 32,768, plan)", "met"],
        ["", "not measured"],
        ["0.80 (f16, 32,768, pysa)", "met"],
        ["0.75 (f16)", "missed"],
        ["1.50 (f16)", "met"],
        ["1.00 (f16, 0, pysa)", "met"],
    ]
    what = "GPU memory saved by the plan, f16, 32,768"
    assert gpu_targets.saved(found) == [[what, "formula: 35.0%", "34.0%", "measured"]]


def test_the_oracle_is_refused_beside_a_gpu_and_the_cpu_is_the_default(
    tool: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    against, sides = tool("against_llama_cpp"), tool("sides")
    monkeypatch.setattr(sys, "argv", ["against", "m.gguf", "--device", "CUDA0"])
    with pytest.raises(SystemExit):
        against.parsed()
    assert "the oracle computes on the CPU" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["against", "m.gguf"])
    assert against.parsed().device == "cpu"
    setup = sides.Setup("m.gguf", 2, "f16", 0, fill=False)
    assert sides.llama_bench_command("b", 0, setup)[-2:] == ["-dev", "none"]


def test_batches_are_measured_on_a_gpu_too(dense_gguf: Path) -> None:
    command = [
        sys.executable,
        BENCH / "batch_throughput.py",
        dense_gguf,
        "-s",
        "2",
        "-n",
        "2",
        "--turn",
        "1",
        "-t",
        "1",
    ]
    command += ["--device", emulated_gpu(), "-ngl", "3", "--attention", "composed", "--json", "-"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (found["device"], found["n_gpu_layers"], found["card"]) == ("EMU0", 3, "emulated GPU, for tests")
    assert found["rows"][0]["together_per_s"] > 0
