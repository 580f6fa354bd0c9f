"""Fuzzes GGUF reading until stopped: `python tests/fuzz/fuzz_gguf.py [--seconds N] [--seed N] [--folder DIR]`.

The last damaged file stays in the folder, so an abort leaves the file that caused it. Sanitizer builds find more.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.gguf_mutations import SMALL, exercise, mutate_bytes, write_damaged_keys
from helpers.tiny_gguf import random_plan, write_tiny_gguf

from pysa import _native


def main() -> int:
    """Runs the loop; 0 when the time is over, an exception when something else than a PysaError came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fuzz-gguf-"))
    folder.mkdir(parents=True, exist_ok=True)

    sound = []
    for vocab in ("gpt2", "llama"):
        path = write_tiny_gguf(folder / f"{vocab}.gguf", vocab=vocab, plan=random_plan(1, 2, 1), **SMALL)
        sound.append((path.read_bytes(), _native.gguf_read(str(path))["data_offset"]))
    outcomes: collections.Counter[str] = collections.Counter()
    path = folder / "last.gguf"
    end = time.monotonic() + arguments.seconds
    seed = arguments.seed
    print(f"folder {folder}", flush=True)
    while time.monotonic() < end:
        rng = np.random.default_rng(seed)
        if seed % 4 == 0:
            write_damaged_keys(path, rng)
        else:
            data, n_header = sound[seed % len(sound)]
            path.write_bytes(mutate_bytes(data, rng, n_header) or b"G")
        outcomes[exercise(_native, path)] += 1
        seed += 1
        if seed % 2000 == 0:
            print(f"seed {seed}: {dict(outcomes)}", flush=True)
    print(f"seed {seed}: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
