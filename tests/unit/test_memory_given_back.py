"""close() gives memory back, however often sessions came and went before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is what Linux tells")

MEMORY = """
import gc, json, sys
import pysa

def anonymous_bytes():
    gc.collect()
    return 1024 * int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])

seen = []
pysa.Model(sys.argv[1], n_threads=2).session(256).eval([5])  # what the first use of the libraries takes for good
before = anonymous_bytes()
model = pysa.Model(sys.argv[1], n_threads=2)
opened = anonymous_bytes()
for _ in range(3):
    session = model.session(16384, n_ubatch=64)
    session.eval(list(range(64)))
    for n in range(512, 16384, 512):
        session._fill(n)  # as a conversation grows
    held = anonymous_bytes()
    cache = session.memory()["total"]
    session.close()
    seen.append([cache, held - opened, anonymous_bytes() - opened])
model.close()
print(json.dumps([seen, anonymous_bytes() - before]))
"""
MIB = 1 << 20


@needs_proc
def test_closing_gives_memory_back(tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf("llama", n_layer=6, n_head=4, n_head_kv=4, head_dim=64, n_ctx=16384)
    command = [sys.executable, "-c", MEMORY, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen, left = json.loads(done.stdout)
    for cache, held, kept in seen:
        assert cache == 16384 * 6 * 4 * 64 * 2 * 2
        assert cache <= held <= cache + cache // 6 + 12 * MIB  # a layer more while it grows, graphs and threads
        assert kept <= 4 * MIB
    assert left <= 4 * MIB
