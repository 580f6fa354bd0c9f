"""Cache bytes of a GGUF, dense and with its plan: by formula, as allocated, and as the process grew.

Each measurement runs in a process of its own, so that one does not find the other's pages. Usage:

    python bench/cache_memory.py M.gguf -n 2048 --type-k f16 --type-v f16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import pysa


def resident_bytes() -> int:
    """Resident memory of this process that no file backs (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def measure(path: str, n: int, plan: str | None, type_k: str, type_v: str) -> dict[str, int]:
    """Evaluates n random tokens token by token at the end, so that no prompt's buffers are left, and counts bytes."""
    with pysa.Model(path, device="cpu") as model:
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, n)
        session = model.session(n_ctx=n, type_k=type_k, type_v=type_v, plan=plan)
        session.eval(tokens[:64], logits="none")
        before, cache_before = resident_bytes(), session.memory()["total"]
        session.eval(tokens[64:-2], logits="none")
        for token in tokens[-2:]:
            session.eval([token], logits="none")
        memory = session.memory()
        return {
            "formula": model.cache_bytes(n, plan=plan, type_k=type_k, type_v=type_v)["total"],
            "allocated": memory["total"],
            "growth": resident_bytes() - before + cache_before,
            "other": memory["attention"] + memory["compute"],
        }


def main() -> None:
    """Prints one line per plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=2048, help="tokens held (default 2048)")
    parser.add_argument("--type-k", default="f16")
    parser.add_argument("--type-v", default="f16")
    parser.add_argument("--one", choices=("dense", "plan"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        plan = "dense" if args.one == "dense" else None
        print(json.dumps(measure(args.model, args.n, plan, args.type_k, args.type_v)))
        return

    rows = {}
    for which in ("dense", "plan"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", which], check=True, capture_output=True
        )
        rows[which] = json.loads(done.stdout)
    print(f"{args.model}: {args.n} tokens, K {args.type_k}, V {args.type_v}; MiB")
    print("| plan | formula | allocated | process growth (cache + buffers) | buffers reported |\n|---|---|---|---|---|")
    for which, row in rows.items():
        cells = " | ".join(f"{row[key] / 2**20:.2f}" for key in ("formula", "allocated", "growth", "other"))
        print(f"| {which} | {cells} |")
    print(f"saved, as allocated: {1 - rows['plan']['allocated'] / rows['dense']['allocated']:.2%}")


if __name__ == "__main__":
    main()
