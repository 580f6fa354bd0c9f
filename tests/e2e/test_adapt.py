"""pysa-adapt from end to end on a small random checkpoint: it learns, goes on, converts, and says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import CORPUS, make_checkpoint
from helpers.plans import relative_error
from pysa_convert import cli as convert_cli
from pysa_convert.adapt import cli

import pysa
from pysa import Plan

torch = pytest.importorskip("torch", reason="pysa-adapt trains with it")
transformers = pytest.importorskip("transformers", reason="pysa-adapt trains its models")

from pysa_convert.adapt.shared_attention import share_attention  # noqa: E402
from pysa_convert.adapt.trainer import Trainer  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

N_LAYER, N_HEAD, N_CTX = 3, 4, 48
FAST = ["--threads", "1", "--device", "cpu", "--context", str(N_CTX), "--batch", "4", "--micro-batch", "4"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """FAST asks for one thread; other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `m` (a checkpoint), `plan.json` and `data.txt`; tests must not change it."""
    folder = tmp_path_factory.mktemp("adapt")
    sizes = {"n_layer": N_LAYER, "n_head": N_HEAD, "n_embd": 48, "n_ff": 80, "n_ctx": 64}
    make_checkpoint(folder / "m", "llama", seed=3, **sizes)
    plan = Plan.pod_spans(N_LAYER, N_HEAD, [(1, 2)], 2, 6)
    plan.calibration = {"saving": 0.3}
    plan.save(folder / "plan.json")
    (folder / "data.txt").write_text(CORPUS * 4, encoding="utf-8")
    return folder


@pytest.fixture
def adapt(made: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs pysa-adapt into tmp_path / NAME."""

    def run(name: str, *arguments: str, plan: str = "plan.json", data: str = "data.txt") -> int:
        given = [str(made / "m"), "--data", str(made / data), "-o", str(tmp_path / name), *FAST, *arguments]
        return cli.main(given if "--control" in arguments else [*given, "--plan", str(made / plan)])

    return run


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, Any]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of that step's gradients."""
    usual = Trainer._pass

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.step == step and torch.is_grad_enabled():
            monkeypatch.setattr(Trainer, "_pass", usual)
            raise KeyboardInterrupt
        return usual(self, *arguments)

    monkeypatch.setattr(Trainer, "_pass", interrupted)


def test_it_learns_and_the_result_converts_and_runs(
    adapt: Callable[..., int], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--eval", str(made / "data.txt"), "--eval-every", "15"]
    assert adapt("out", "--steps", "40", "--lr", "0.003", "--ce-weight", "0.1", *held_out) == 0
    text = capsys.readouterr().out
    for line in (
        "trains 0.10 M parameters (all weights) on cpu, float32",
        "plan: pod, window 2 + 6, heads: 4 owner, 8 follower, 0 local",
        "steps: 40 steps of 4 rows, 192 tokens, 4 at a time; learning rate 0.003",
        "loss: 1 x KL to the dense model + 0.1 x next-token loss",
        "memory: about 0.",
        "40 steps, 7,",
        "held-out perplexity ",
    ):
        assert line in text
    out, log = tmp_path / "out", log_of(tmp_path / "out")
    evaluations = [record for record in log if "eval_kl" in record]
    assert [record["step"] for record in evaluations] == [0, 15, 30, 40]
    assert evaluations[-1]["eval_kl"] < 0.6 * evaluations[0]["eval_kl"]
    assert evaluations[-1]["eval_ce"] < evaluations[0]["eval_ce"] - 0.1
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 41))
    assert max(record["lr"] for record in steps) == pytest.approx(0.003, rel=0.02)

    record = json.loads((out / "adapt.json").read_text())
    assert record["trained"]["steps"] == 40
    assert record["evaluation"] == evaluations[-1]
    assert Plan.load(out / "plan.json") == Plan.pod_spans(N_LAYER, N_HEAD, [(1, 2)], 2, 6)  # measurements dropped
    assert not (tmp_path / "out.unfinished").exists()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (made / "m" / name).read_bytes()

    path = tmp_path / "out.gguf"
    arguments = [str(out), "--plan", str(out / "plan.json"), "--outtype", "f32", "-o", str(path), "--quiet"]
    assert convert_cli.main(arguments) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    share_attention(model, Plan.load(out / "plan.json"))
    tokens = np.random.default_rng(0).integers(3, 400, N_CTX).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    with pysa.Model(path, n_threads=1) as engine, engine.session(type_k="f32", type_v="f32") as session:
        assert relative_error(session.eval(tokens, logits="all"), expected) <= 1e-3


@pytest.mark.parametrize("lora", [0, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(
    lora: int,
    adapt: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if lora:
        pytest.importorskip("peft", reason="--lora needs it")
    arguments = ["--steps", "6", "--lr", "0.01", "--lora", str(lora), "--micro-batch", "2"]
    assert adapt("whole", *arguments) == 0
    interrupt_at(4, monkeypatch)
    assert adapt("parts", *arguments) == 130
    kept = tmp_path / "parts.unfinished"
    assert capsys.readouterr().err == f"pysa-adapt: interrupted; --resume goes on from {kept}\n"
    assert not (tmp_path / "parts").exists()
    with open(kept / "log.jsonl", "a") as log:
        log.write('{"step": 5, "loss": 0.0}\n')  # a step after the saved state, as after a crash
    assert adapt("parts", *arguments, "--resume") == 0
    assert "going on after step 4" in capsys.readouterr().out
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [[{**record, "seconds": 0} for record in log_of(tmp_path / name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 6


def test_an_interrupt_before_the_first_step_leaves_nothing(
    adapt: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(0, monkeypatch)
    assert adapt("out", "--steps", "2", "--quiet") == 130
    assert capsys.readouterr().err == "pysa-adapt: interrupted, nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_real_ctrl_c_saves(made: Path, tmp_path: Path) -> None:
    arguments = [str(made / "m"), "--data", str(made / "data.txt"), "--plan", str(made / "plan.json"), *FAST]
    # a test run in the background ignores SIGINT, and so would its children
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pysa_convert.adapt import cli; sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, *arguments, "-o", "out", "--steps", "100000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
    kept = tmp_path / "out.unfinished"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if (kept / "log.jsonl").is_file() and len((kept / "log.jsonl").read_text().splitlines()) > 1:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "pysa-adapt: interrupted; --resume goes on from out.unfinished\n"
    state = torch.load(kept / "state.pt", weights_only=True)
    assert state["step"] == log_of(kept)[-1]["step"] > 0


def test_a_control_trains_the_dense_model_and_writes_no_plan(adapt: Callable[..., int], tmp_path: Path) -> None:
    assert adapt("control", "--control", "--steps", "3", "--lr", "0.003") == 0
    first = log_of(tmp_path / "control")[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)  # before its first update it is the model it learns from
    assert not (tmp_path / "control" / "plan.json").exists()
    assert adapt("shared", "--steps", "3", "--lr", "0.003") == 0
    shared = log_of(tmp_path / "shared")[0]
    assert shared["kl"] > 0.05
    assert shared["tokens"] == first["tokens"]


def test_types_shards_and_ties_stay_as_they_were(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"n_layer": N_LAYER, "n_head": N_HEAD, "n_embd": 48, "n_ff": 80, "n_ctx": 64}
    source = make_checkpoint(
        tmp_path / "m", "qwen2", tie=True, dtype="bfloat16", max_shard_size="60KB", n_vocab_extra=5, **sizes
    )
    paths = [*FAST, "--data", str(made / "data.txt"), "--plan", str(made / "plan.json"), "-o", str(tmp_path / "out")]
    assert cli.main([str(source), *paths, "--steps", "2", "--lr", "0.01", "--checkpointing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_steps"] == 2
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("*.safetensors*")) == sorted(
        path.name for path in source.glob("*.safetensors*")
    )
    before, after = weights_of(source), weights_of(out)
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {n: (t.dtype, t.shape) for n, t in after.items()}
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    assert convert_cli.main([str(out), "-o", str(tmp_path / "out.gguf"), "--quiet"]) == 0


# ---- what is refused


def test_an_output_or_unfinished_run_is_not_replaced_unasked(
    adapt: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupt_at(1, monkeypatch)
    assert adapt("out", "--steps", "2") == 130
    capsys.readouterr()
    assert adapt("out", "--steps", "2") == 1
    assert "out.unfinished: an unfinished run is there; pass --resume" in capsys.readouterr().err
    assert adapt("out", "--steps", "2", "--seed", "1", "--resume") == 1
    error = capsys.readouterr().err
    assert "another run (1 differences): seed: expected 0, got 1; drop it with --force" in error
    (tmp_path / "out.unfinished" / "state.pt").write_bytes(b"damaged")
    assert adapt("out", "--steps", "2", "--resume") == 1
    assert "state.pt: damaged" in capsys.readouterr().err
    assert adapt("out", "--steps", "2", "--force") == 0
    assert adapt("out", "--steps", "2") == 1
    assert capsys.readouterr().err == f"pysa-adapt: {out}: exists; pass --force to replace it\n"
    before = weights_of(out)
    assert adapt("out", "--steps", "2", "--seed", "1", "--force") == 0
    assert not torch.equal(before["model.norm.weight"], weights_of(out)["model.norm.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_errors_are_one_line(
    adapt: Callable[..., int], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated, small = Plan.load(made / "plan.json"), Plan.dense(2, N_HEAD)
    gated.skip_gate = 0.5
    for name, plan in (("gated.json", gated), ("small.json", small)):
        plan.save(made / name, force=True)
    for status, message, arguments, options in (
        (1, "data: cannot be read", [], {"data": "data"}),
        (1, "none.json: cannot be read", [], {"plan": "none.json"}),
        (1, "expected 3 layers as the model has, got 2", [], {"plan": "small.json"}),
        (1, "skip_gate: expected 1.0 for training", [], {"plan": "gated.json"}),
        (1, "--context: expected at most the model's 64 tokens, got 65", ["--context", "65"], {}),
        (1, "--context: expected more than the plan's window of 8 tokens, got 8", ["--context", "8"], {}),
        (1, "--device nowhere: not to be had", ["--device", "nowhere"], {}),
        (1, "the loss is not finite", ["--lr", "1e30", "--steps", "9"], {}),
        (2, "--steps: expected a number from 1", ["--steps", "0"], {}),
    ):
        assert adapt("out", *arguments, "--force", **options) == status, message
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pysa-adapt: ")
        assert message in line
    assert cli.main([str(tmp_path / "no"), "--control", "--data", "x", "-o", str(tmp_path / "y")]) == 1
    assert "expected a checkpoint's folder or a hub id" in capsys.readouterr().err
    assert cli.main([str(made / "m"), "--control", "--data", "x", "-o", str(tmp_path / "a" / "b")]) == 1
    assert "its folder does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_and_usage_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pysa_convert.adapt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, check=False, capture_output=True, encoding="utf-8", env=environment)

    assert "--micro-batch N" in run("--help").stdout
    usage = run("m", "--data", "x", "-o", "y")
    assert usage.returncode == 2
    assert "--plan: expected a plan.json" in usage.stderr
    missing = run("m", "--data", "x", "-o", "y", "--control")
    assert missing.returncode == 1
    assert "pip install 'pysa[adapt]'" in missing.stderr
