"""`pysa bench`: what it measures, prints and refuses. Speeds themselves are not asserted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.gpus import emulated_gpu, on_gpu

from pysa import _native
from pysa.cli.bench import Bench, Reading, Row, attention_gb_per_s, bandwidth, cache_side
from pysa.cli.bench_table import bench_lines
from pysa.cli.main import main
from pysa.cli.placement import Placement
from pysa.errors import ArgumentError, DeviceError

Run = Callable[..., "subprocess.CompletedProcess[str]"]
USAGE = [
    (["-d", "1,x"], "-d/--depth: expected integers of 0 or more, as 0,4096, got '1,x'"),
    (["-d", "-5"], "-d/--depth"),
    (["-n", "0"], "-n/--tokens: expected an integer in 1..2147483647, got '0'"),
    (["-p", "-1"], "-p/--prompt-tokens"),
    (["--fill", "--prompt"], "not allowed with argument"),
    (["--type-k", "f8"], "--type-k: invalid choice: 'f8'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage_errors_are_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "m.gguf", *arguments]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"pysa: error: [^\n]+\n", err), err
    assert message in err


def test_failures_are_one_line_and_status_1(shared_gguf: Path, tmp_path: Path, run_pysa: Run) -> None:
    for arguments, message in (
        ((tmp_path / "absent.gguf",), "absent.gguf"),
        ((shared_gguf, "--plan", tmp_path / "absent.json"), "absent.json"),
    ):
        done = run_pysa("bench", *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert re.fullmatch(r"pysa: error: [^\n]+\n", done.stderr), done.stderr
        assert message in done.stderr


def test_json_has_a_row_per_depth(shared_gguf: Path, shared_model: Any, run_pysa: Run) -> None:
    done = run_pysa("bench", shared_gguf, "-d", "300,100", "-n", "3", "-p", "40", "-t", "1", "--v-skip", "0", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = json.loads(done.stdout)
    assert (out["depth_by"], out["type_k"], out["model"]["n_threads"]) == ("fill", "f16", 1)
    assert (out["model"]["plan"], out["model"]["n_recent"]) == ("custom", 24)
    assert out["bandwidth_gb_per_s"] > 0
    assert [row["depth"] for row in out["rows"]] == [0, 100, 300]
    for row in out["rows"]:
        assert len(row["ms"]) == 3
        assert row["tokens_per_s"] == pytest.approx(1e3 / sorted(row["ms"])[1])
        assert row["prompt_per_s"] > 0
        assert row["saving"] == pytest.approx(1 - row["cache"]["total"] / row["cache"]["dense"])
        # The mean of what is held while two tokens to warm up and three more are decoded.
        assert row["read_bytes"] == shared_model.cache_bytes(row["depth"] + 2)["total"]
        assert row["values_read"] == 1
    assert out["rows"][0]["attention_gb_per_s"] is None
    assert out["rows"][2]["saving"] > 0


def test_a_prompt_can_reach_the_depth_and_dense_saves_nothing(shared_gguf: Path, run_pysa: Run) -> None:
    done = run_pysa("bench", shared_gguf, "-d", "70", "--prompt", "-n", "2", "--plan", "dense", "-t", "1", "--json")
    out = json.loads(done.stdout)
    assert (out["depth_by"], out["model"]["plan"]) == ("prompt", "dense")
    assert [(row["saving"], row["prompt_per_s"]) for row in out["rows"]] == [(0, None), (0, None)]


def test_values_left_out_are_not_counted_as_read(shared_model: Any) -> None:
    with shared_model.session(plan="dense", v_skip=0.5) as session:
        session.eval(list(range(60)), logits="none")
        reading, before = Reading(session), session.skip_report()
        for token in range(4):
            session.eval([token])
        read_bytes, values_read = reading.finish(4)
        after = session.skip_report()
    n_values, n_read = (after[key] - before[key] for key in ("n_values", "n_values_read"))
    assert 0 < n_read < n_values
    assert values_read == pytest.approx(n_read / n_values)
    # A value row of the model is 32 halves.
    held = shared_model.cache_bytes(62, "dense")["total"]
    assert read_bytes == pytest.approx(held - (n_values - n_read) / 4 * 32 * 2, abs=1)


def row(depth: int, ms: list[float], read_bytes: int) -> Row:
    cache = {"total": 650, "dense": 1000}
    return Row(depth, 12.5, ms, depth, cache, read_bytes, 0.25, None)


def test_attention_is_the_time_above_depth_0() -> None:
    base = row(0, [10.0, 10.1, 10.2], 1000)
    assert attention_gb_per_s(base, row(9, [20.1, 20.1, 20.1], 200_001_000)) == pytest.approx(20.0)
    assert attention_gb_per_s(base, row(9, [9.0, 10.3, 12.0], 200_001_000)) is None  # the noise is larger


def bench_of(rows: list[Row], **fields: Any) -> Bench:
    facts = {"file": "m.gguf", "plan": "pod", "n_sink": 16, "n_recent": 4080, "attention": "fused", "kernel": "avx512"}
    placement = asdict(fields.get("placement", Placement("cpu", 0, 5, 0, 0, 0)))
    facts |= {"n_threads": 2, "placement": placement, "card": "a card", "driver": "1.2"}
    side = placement["device"]
    return Bench(facts, fields.get("depth_by", "fill"), "f16", "q8_0", fields.get("bandwidth", 30.0), side, rows)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_output_fits_the_width_and_has_every_figure(width: int) -> None:
    deep = row(131072, [20.0, 20.0], 200_000_000)
    deep.attention_gb_per_s = 24.0
    lines = bench_lines(bench_of([row(0, [10.0, 10.0], 0), deep]), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for figure in ("131,072", "12.5", "50.0", "20.00", "650 B", "35.0 %", "25.0 %", "24.0", "80 %", "30.0 GB/s"):
        assert figure in text
    assert "filled with copied rows" in text
    assert "reached by a prompt" in "\n".join(bench_lines(bench_of([deep], depth_by="prompt"), width))


def test_on_a_gpu_attention_is_beside_the_speed_of_copying() -> None:
    deep = row(131072, [20.0, 20.0], 200_000_000)
    deep.attention_gb_per_s = 240.0
    where = Placement("CUDA0", 5, 5, 1 << 20, 4, 1 << 21)
    bench = bench_of([row(0, [10.0, 10.0], 0), deep], placement=where, bandwidth=300.0)
    assert [one["share"] for one in bench.to_json()["rows"]] == [None, pytest.approx(0.8)]
    lines = bench_lines(bench, 120)
    assert "memory  copied, read and written at 300.0 GB/s" in lines
    assert "card    a card, driver 1.2" in lines
    assert lines[-1].split()[-3:] == ["240.0", "80", "%"]


def test_a_gpu_with_too_little_room_copies_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def copy(device: str, n_bytes: int) -> float:
        asked.append(n_bytes >> 20)
        if n_bytes > most:
            raise DeviceError("out of memory")
        return 5.0

    monkeypatch.setattr(_native, "copy_bandwidth", copy)
    most = 300 << 20
    assert bandwidth("CUDA0", 1) == [5.0]
    assert asked == [1024, 512, 256]
    most = 0
    assert bandwidth("CUDA0", 1) == bandwidth(None, 1) == []


@pytest.mark.parametrize(
    ("n_gpu_layers", "kv_offload", "side"), [(5, True, "EMU0"), (2, True, None), (5, False, "cpu"), (0, True, "cpu")]
)
def test_the_speed_is_that_of_the_memory_the_cache_is_in(
    dense_gguf: Path, n_gpu_layers: int, kv_offload: bool, side: str | None
) -> None:
    with on_gpu(dense_gguf, emulated_gpu(), n_gpu_layers=n_gpu_layers) as model:
        assert cache_side(model.session(8, kv_offload=kv_offload)) == side


def test_columns_without_figures_are_left_out() -> None:
    plain = Row(0, None, [10.0], 0, {"total": 1000, "dense": 1000}, 0, 1.0)
    header = bench_lines(bench_of([plain]), 100)[-2]
    assert header.split() == ["depth", "t/s", "ms/token", "cache"]


def test_a_narrow_terminal_shows_a_bar_and_no_broken_line(shared_gguf: Path) -> None:
    import pty
    import termios

    master, slave = pty.openpty()
    if not hasattr(termios, "tcsetwinsize"):
        pytest.skip("the width of a terminal can be set from Python 3.11 on")
    termios.tcsetwinsize(slave, (40, 40))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, "-m", "pysa.cli.main", "bench", str(shared_gguf), "-d", "0,90", "-n", "4", "-t", "1"]
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env={**environment, "PYTHONIOENCODING": "utf-8"})
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 65536):
            output += chunk
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert process.wait(timeout=60) == 0
    lines = [line for line in re.split(r"[\r\n]+", output.decode()) if str(shared_gguf) not in line]
    assert any(re.fullmatch(r" *\d+ % .*\d+/76 tokens", line) for line in lines)
    assert max(map(len, lines)) <= 40


def test_a_gpu_copies_its_memory_unless_it_has_no_room() -> None:
    gpu = emulated_gpu()
    assert _native.copy_bandwidth(gpu, 1 << 20, 1) > 0
    with pytest.raises(DeviceError, match="no room for two times"):
        _native.copy_bandwidth(gpu, 1 << 40)
    for arguments, message in (((gpu, 1), "at least 1 MiB"), ((gpu, 1 << 20, 0), "one pass"), (("cpu",), "a GPU")):
        with pytest.raises(ArgumentError, match=message):
            _native.copy_bandwidth(*arguments)


def test_read_bandwidth_refuses_what_it_cannot_measure() -> None:
    assert _native.read_bandwidth(2, 8 << 20, 2) > 0
    assert _native.read_bandwidth(3, (3 * 65536) + 8, 1) > 0  # shares are whole cache lines
    for arguments, message in (
        ((0,), "n_threads"),
        ((513,), "n_threads"),
        ((2, 131071), "n_bytes"),
        ((1, 65536, 0), "repeats"),
    ):
        with pytest.raises(ArgumentError, match=f"{message}: expected"):
            _native.read_bandwidth(*arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_read_bandwidth_without_the_memory_is_an_error(tmp_path: Path) -> None:
    script = """
import resource
from pysa import _native
from pysa.errors import DeviceError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    _native.read_bandwidth(1, 8 << 30)
except DeviceError as error:
    print(error)
"""
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read_bandwidth: not enough memory: expected 8589934592 bytes; ")
