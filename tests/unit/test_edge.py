"""What small machines need: a quick import, and a fork that fails clearly and does not hang."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.public_shapes import MODELS, edge_rows
from helpers.talking_gguf import END, START, write_talking_gguf

from pysa.prefix import common_prefix

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run(script: str, *arguments: object) -> Any:
    """What a script prints as JSON."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


IMPORTED = """
import json, sys, time
before, began = set(sys.modules), time.process_time()
import pysa
seconds = time.process_time() - began
names = set(sys.modules) - before
pysa.Model, pysa.Session, pysa.Plan, pysa.fit, pysa.PrefixCache
print(json.dumps([seconds, sorted(names), sorted(set(sys.modules) - before)]))
"""
HEAVY = {"torch", "transformers", "jinja2", "gguf", "huggingface_hub", "fastapi", "starlette", "uvicorn", "asyncio"}


def test_import_is_quick() -> None:
    seconds, at_import, in_use = run(IMPORTED)
    assert seconds < 0.3  # of the processor, so that a busy machine counts as an idle one
    assert "numpy" not in at_import
    assert len(at_import) < 20
    assert not HEAVY & set(in_use)
    assert "numpy" in in_use  # the engine's arrays; all that a model and a session need


def test_every_name_is_there() -> None:
    import pysa

    assert set(pysa.__all__) <= set(dir(pysa))
    for name in ("Fit", "Model", "Plan", "PrefixCache", "Session", "fit"):
        assert getattr(pysa, name).__module__.startswith("pysa."), name
    assert callable(pysa.fit)


FORKED = """
import json, os, sys
import pysa

path, kept = sys.argv[1], sys.argv[2]
model = pysa.Model(path, n_threads=2)
session = model.session(256)
before = session.eval([5, 6, 7])
session.save(kept)

def fault(call):
    try:
        call()
    except pysa.PysaError as error:
        return [type(error).__name__, str(error)]

readable, writable = os.pipe()
if os.fork() == 0:
    faults = [
        fault(lambda: model.session(64)),
        fault(lambda: model.load_session(kept)),
        fault(lambda: session.eval([8])),
        fault(lambda: list(session.generate([8], 2))),
    ]
    session.close()
    model.close()
    with pysa.Model(path, n_threads=2) as own:
        same = own.session(256).eval([5, 6, 7]).tolist() == before.tolist()
    os.write(writable, json.dumps([faults, same]).encode())
    sys.exit(3)  # as usual, with all that runs then

_, status = os.wait()
told = json.loads(os.read(readable, 1 << 16))
after = model.session(256).eval([5, 6, 7])
print(json.dumps([told, os.waitstatus_to_exitcode(status), after.tolist() == before.tolist()]))
"""


@needs_fork
def test_a_forked_child_is_told_and_can_end(shared_gguf: Path, tmp_path: Path) -> None:
    (faults, same), status, unharmed = run(FORKED, shared_gguf, tmp_path / "session.state")
    assert [kind for kind, _ in faults] == ["DeviceError"] * 4
    assert all("opened before a fork" in text and "open the model in the child" in text for _, text in faults)
    assert same  # a model of its own works
    assert status == 3
    assert unharmed


CHILD_WITHOUT_A_WORD = """
import os, sys
import pysa

model = pysa.Model(sys.argv[1], n_threads=2)
session = model.session(256)
session.eval([5, 6, 7])
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
# The child ends with its parent's model and session still held.
"""


@needs_fork
def test_a_child_that_never_uses_the_model_ends(dense_gguf: Path) -> None:
    assert run(CHILD_WITHOUT_A_WORD, dense_gguf) == 0


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "edge.md"


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are in the source tree")
def test_the_page_shows_the_example_and_computed_rows() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert (ROOT / "examples" / "embed_in_app.py").read_text(encoding="utf-8").rstrip() in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and " GB | " in line and "Q" in line]
    assert rows == list(edge_rows())


def test_sizes_by_arithmetic_are_those_published() -> None:
    # GB, as the files of these names are listed; metadata and vocabulary are up to 8 MB of them.
    published = {
        ("Llama-3.2-1B", "Q4_K_M"): 0.808,
        ("Llama-3.2-3B", "Q4_K_M"): 2.02,
        ("Llama-3.1-8B", "Q4_K_M"): 4.92,
        ("Llama-3.1-8B", "Q8_0"): 8.54,
        ("Qwen3-0.6B", "Q8_0"): 0.639,
        ("Qwen3-4B", "Q4_K_M"): 2.50,
        ("Qwen3-8B", "Q4_K_M"): 5.03,
    }
    for (name, mix), n_gb in published.items():
        assert MODELS[name].file_bytes(mix) / 1e9 == pytest.approx(n_gb, abs=0.011), (name, mix)


def test_the_example_answers_and_reads_its_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pysa

    path = write_talking_gguf(tmp_path / "m.gguf", {START: "yes", "yes": " sir", " sir": END})
    example = runpy.run_path(str(ROOT / "examples" / "embed_in_app.py"))
    text = " ".join(f"line {i}" for i in range(100))
    spared: list[tuple[int, int]] = []
    find = pysa.PrefixCache.find

    def watched(cache: pysa.PrefixCache, model: pysa.Model, tokens: Any, *settings: Any, **more: Any) -> Any:
        session = find(cache, model, tokens, *settings, **more)
        spared.append((0 if session is None else common_prefix(session.tokens, tokens), len(tokens)))
        return session

    monkeypatch.setattr(pysa.PrefixCache, "find", watched)
    for question in ("is it?", "was it?"):
        answer = "".join(example["answer"](path, text, question, memory="1G", folder=tmp_path / "cache"))
        assert answer == "yes sir"
    (first, n_first), (second, n_second) = spared
    assert first == 0
    assert n_first > 600
    assert n_second - second < 60  # the question and the end of the turn
