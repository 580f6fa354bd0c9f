"""The command `pysa`: what it prints, where, and with which exit status; on a pipe and on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pysa.cli.console import Console
from pysa.cli.errors import one_line
from pysa.cli.main import main
from pysa.cli.picture import plan_lines
from pysa.cli.render import size_text
from pysa.plan import Plan

Run = Callable[..., "subprocess.CompletedProcess[str]"]
USAGE = [
    ([], "the following arguments are required: COMMAND"),
    (["generate", "m.gguf", "-p", "x", "--nosuch"], "unrecognized arguments: --nosuch"),
    (["generate", "m.gguf", "-p", "x", "--max", "5"], "unrecognized arguments"),
    (["generate", "m.gguf"], "one of the arguments -p/--prompt -f/--file is required"),
    (["generate", "m.gguf", "-p", "x", "-f", "y"], "not allowed with argument"),
    (["generate", "-p", "x"], "the following arguments are required: MODEL.gguf"),
    (["generate", "m.gguf", "-p", "x", "-n", "0"], "-n/--max-tokens: expected an integer in 1..2147483647, got '0'"),
    (["generate", "m.gguf", "-p", "x", "--temp", "nan"], "--temp: expected a number in 0..1e+06, got 'nan'"),
    (["generate", "m.gguf", "-p", "x", "--v-skip", "1.5"], "--v-skip: expected a number in 0..1, got '1.5'"),
    (["generate", "m.gguf", "-p", "x", "--top-p", "0"], "--top-p: expected a number above 0, at most 1, got '0'"),
    (["generate", "m.gguf", "-p", "x", "--type-k", "f8"], "--type-k: invalid choice: 'f8'"),
    (["generate", "m.gguf", "-p", ""], "the prompt is empty"),
    (["frobnicate"], "invalid choice: 'frobnicate'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage_errors_are_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pysa: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_failures_are_one_line_and_status_1(
    tmp_path: Path, shared_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(shared_gguf.read_bytes()[:-100])
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    cases: list[tuple[list[Any], int, str]] = [
        (["inspect", tmp_path / "absent.gguf"], 1, "absent.gguf"),
        (["inspect", broken], 1, "broken.gguf"),
        (["generate", shared_gguf, "-f", tmp_path / "absent.txt"], 1, "absent.txt"),
        (["generate", shared_gguf, "-f", tmp_path / "latin1.txt"], 2, "not UTF-8 at byte 3"),
        (["generate", shared_gguf, "-p", "x", "--plan", tmp_path / "absent.json"], 1, "absent.json"),
        (["generate", shared_gguf, "-p", "x", "--chat"], 1, "tokenizer.chat_template"),
        (["generate", shared_gguf, "-p", "the thing", "--ctx-size", "2"], 1, "2"),
    ]
    for arguments, status, message in cases:
        assert main([str(a) for a in arguments]) == status, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
        assert re.fullmatch(r"pysa: error: [^\n]+\n", captured.err), captured.err


def test_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "absent.gguf", "--verbose"]) == 1
    captured = capsys.readouterr()
    assert "Traceback (most recent call last)" in captured.err
    assert captured.err.splitlines()[-1].startswith("pysa: error: ")


def test_several_faults_become_one_line() -> None:
    assert one_line("m.gguf: 2 faults:\n  - first\n  - second\n") == "m.gguf: 2 faults: first; second"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["--help"], "generate"),
        (["inspect", "--help"], "--type-k"),
        (["--version"], "pysa 0.1.0"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 0
        assert text in capsys.readouterr().out


def test_generate_prints_text_on_stdout_and_figures_on_stderr(
    shared_gguf: Path, shared_model: Any, run_pysa: Run
) -> None:
    done = run_pysa("generate", shared_gguf, "-p", "the thing", "-n", "12", "-t", "2")
    assert done.returncode == 0, done.stderr
    session = shared_model.session()
    tokens = list(session.generate(shared_model.tokenize("the thing"), max_tokens=12))
    pieces = b"".join(shared_model.token_to_piece(token) for token in tokens)
    assert done.stdout == pieces.decode("utf-8", "replace") + "\n"
    for name in ("prompt", "decode", "cache"):
        assert re.search(rf"^{name} ", done.stderr, re.MULTILINE), done.stderr


def test_generate_json_accounts_for_the_cache(shared_gguf: Path, run_pysa: Run) -> None:
    prompt = "the thing and " * 150
    done = run_pysa("generate", shared_gguf, "-f", "-", "-n", "3", "--json", "-t", "2", "--ubatch", "32", input=prompt)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    parts = ("keys", "values", "window_keys", "window_values")
    assert out["cache"]["total"] == sum(out["cache"][part] for part in parts)
    assert out["cache"]["total"] < out["cache"]["dense"]
    assert out["saving"] == pytest.approx(1 - out["cache"]["total"] / out["cache"]["dense"])
    assert out["n_generated"] == len(out["tokens"])
    assert out["n_past"] == out["n_prompt"] + out["n_generated"] - 1
    dense = run_pysa("generate", shared_gguf, "-p", prompt, "-n", "3", "--json", "-t", "2", "--plan", "dense")
    assert json.loads(dense.stdout)["saving"] == 0


def test_generate_keeps_the_text_when_the_context_is_full(shared_gguf: Path, run_pysa: Run) -> None:
    done = run_pysa("generate", shared_gguf, "-p", "the", "-n", "50", "--ctx-size", "9", "--json", "-t", "1")
    out = json.loads(done.stdout)
    assert out["stopped"] == "context_full"
    assert out["n_past"] == 9
    assert out["n_generated"] == 9 - out["n_prompt"] + 1


def test_generate_applies_the_chat_template(tiny_gguf: Callable[..., Path], run_pysa: Run) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[end]"
    path = tiny_gguf("llama", n_layer=4, vocab="llama", extra_kv={"tokenizer.chat_template": template})
    chat = run_pysa("generate", path, "-p", "hi", "--chat", "-n", "4", "--json", "-t", "2")
    plain = run_pysa("generate", path, "-p", "[user]hi[end]", "-n", "4", "--json", "-t", "2")
    assert chat.returncode == 0, chat.stderr
    assert json.loads(chat.stdout)["tokens"] == json.loads(plain.stdout)["tokens"]


def test_inspect_shows_model_plan_and_cache(shared_gguf: Path, shared_model: Any, run_pysa: Run) -> None:
    done = run_pysa("inspect", shared_gguf)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "architecture   llama" in done.stdout
    rows = re.findall(r"^ +(\d)  ( .*)$", done.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [0, 1, 2, 3]
    kinds = shared_model.plan.kinds()
    signs = {"■": "owner", "○": "local"}
    assert [[signs.get(cell, "follower") for cell in row[1].split()] for row in rows] == kinds.tolist()
    sources = [cell for row in rows for cell in row[1].split() if cell not in signs]
    assert [int(s) for s in sources] == shared_model.plan.score_layer[kinds == "follower"].tolist()
    for n in ("4,096", "8,192", "32,768", "131,072"):
        assert n in done.stdout


def test_inspect_json_is_the_formula(shared_gguf: Path, shared_model: Any, run_pysa: Run) -> None:
    out = json.loads(run_pysa("inspect", shared_gguf, "--json", "--type-k", "q8_0").stdout)
    assert out["model"]["n_layer"] == 4
    assert out["plan"]["score_layer"] == shared_model.plan.score_layer.tolist()
    assert sum(out["plan"]["heads"].values()) == 24
    at = {row["n"]: row for row in out["cache"]["at"]}
    assert sorted(at) == [4096, 8192, 32768, 131072]
    # 4 layers, 2 KV heads of 32: 34 bytes of q8_0 for a key, 64 of f16 for a value.
    assert at[8192]["bytes"]["dense"] == 8192 * 4 * 2 * (34 + 64)
    n_k, n_v = shared_model.plan.full_heads(2)
    assert at[8192]["bytes"]["keys"] == 8192 * n_k * 34
    assert at[8192]["bytes"]["values"] == 8192 * n_v * 64
    assert at[8192]["saving"] == pytest.approx(1 - at[8192]["bytes"]["total"] / at[8192]["bytes"]["dense"])


def test_inspect_without_a_plan(dense_gguf: Path, run_pysa: Run) -> None:
    assert "plan        none" in run_pysa("inspect", dense_gguf).stdout
    assert json.loads(run_pysa("inspect", dense_gguf, "--json").stdout)["plan"] is None


def test_a_reader_that_goes_away_is_no_error_message(shared_gguf: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pysa.cli.main", "inspect", str(shared_gguf)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False, timeout=60)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


# A test run in the background ignores SIGINT, and so would its children.
INTERRUPTIBLE = """
import signal, sys
from pysa.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_status_130(shared_gguf: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        "generate",
        str(shared_gguf),
        "-p",
        "the",
        "-n",
        "2000",
        "-t",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        assert process.stderr.read() == b"pysa: error: interrupted\n"


@pytest.mark.parametrize(
    ("n_layer", "n_head", "width"), [(32, 32, 80), (32, 32, 120), (12, 6, 40), (64, 64, 60), (80, 64, 30)]
)
def test_the_picture_fits_the_width(n_layer: int, n_head: int, width: int) -> None:
    plan = Plan.pod_blocks(n_layer, n_head, 4)
    plan.score_layer[1, 0] = plan.score_head[1, 0] = -1
    for unicode in (True, False):
        console = Console(io.StringIO(), io.StringIO(), width, False, unicode)
        lines = plan_lines(plan, console)
        start, end = lines.index(""), len(lines) - lines[::-1].index("") - 1
        assert max(map(len, lines[start:end])) <= width
        assert all(line.isascii() for line in lines) is not unicode
        assert len(lines[start:end]) >= min(n_layer, 20)


def test_equal_layers_share_a_row_in_a_tall_model() -> None:
    console = Console(io.StringIO(), io.StringIO(), 60, False, True)
    picture = plan_lines(Plan.sa(64, 40, [(23, 26), (27, 60)]), console)
    rows = [line for line in picture if re.match(r" *\d+-\d+ ", line)]
    assert [row.split()[0] for row in rows] == ["0-22", "23-60", "61-63"]
    assert rows[1].endswith("← 22")


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1536 * 1024, 3 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "3.00 GiB",
    ]


def test_inspect_on_a_terminal_has_colour_and_obeys_no_color(shared_gguf: Path) -> None:
    status, chunks = on_terminal(["inspect", str(shared_gguf)])
    text = b"".join(chunks).decode()
    assert status == 0
    assert "\x1b[32m" in text
    assert "■" in text
    status, chunks = on_terminal(["inspect", str(shared_gguf)], NO_COLOR="1")
    assert status == 0
    assert b"\x1b" not in b"".join(chunks)
    status, chunks = on_terminal(["inspect", str(shared_gguf)], PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert status == 0
    assert b"".join(chunks).isascii()


def test_generate_on_a_terminal_streams(shared_gguf: Path) -> None:
    status, chunks = on_terminal(["generate", str(shared_gguf), "-p", "the thing", "-n", "200", "-t", "1"])
    assert status == 0
    assert len(chunks) > 5  # text came while it was generated, not at the end
    assert b"tokens/s" in b"".join(chunks)


def on_terminal(arguments: list[str], **environment: str) -> tuple[int, list[bytes]]:
    """Runs `pysa` on a pseudo-terminal of 80 columns; its exit status and what came, read by read."""
    import pty
    import termios

    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 80)) if hasattr(termios, "tcsetwinsize") else None
    known = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pysa.cli.main", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**known, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(slave)
    chunks: list[bytes] = []
    while select.select([master], [], [], 60)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        chunks.append(data)
    os.close(master)
    return process.wait(timeout=60), chunks


def test_unfinished_characters_wait_for_the_next_token() -> None:
    from pysa.text_stream import TextStream

    class Pieces:
        def token_to_piece(self, token: int, special: bool = False) -> bytes:
            return bytes([token])

    stream = TextStream(Pieces())  # type: ignore[arg-type]
    parts = [stream.feed(b) for b in "é✓".encode()] + [stream.feed(0xE2), stream.finish()]
    assert parts == ["", "é", "", "", "✓", "", "\ufffd"]
    assert np.char.str_len(parts).sum() == 3
