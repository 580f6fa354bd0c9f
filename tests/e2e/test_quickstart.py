"""The README's promise: its code blocks, and the script that its first command runs, on the checkpoint in examples/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has `pysa`, `pysa-convert` and `python` of this interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in {"pysa": "-m pysa.cli.main", "pysa-convert": "-m pysa_convert", "python": ""}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_quickstart_converts_inspects_and_generates(commands: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "examples" / "quickstart.sh"), str(tmp_path / "out")],
        env=commands,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "architecture   llama" in done.stdout
    assert re.search(r"131,072 +[\d.]+ \wiB +[\d.]+ \wiB +[1-9][\d.]* %", done.stdout), done.stdout
    saved = [float(share) for share in re.findall(r"dense [\d.]+ \wiB: ([\d.]+) % saved", done.stderr)]
    assert len(saved) == 2
    assert saved[0] > 0
    assert saved[1] == 0  # the second generation runs dense
    assert (tmp_path / "out" / "tiny-llama-stdlib.gguf").read_bytes()[:4] == b"GGUF"


def test_ci_finds_the_test_command_in_the_readme() -> None:
    blocks = re.findall(
        r"<!-- ci: the test command -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    assert len(blocks) == 1
    assert blocks[0].rstrip().endswith(".venv-test/bin/pytest")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
