"""1,000 tokens on a GPU, for compute-sanitizer: decode_1000.py DEVICE. Plans, rings that wrap, a prompt before."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from helpers.gpus import on_gpu
from helpers.plans import GQA2, MQA, build_plan

N_TOKENS = 1000


def main() -> None:
    device = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for dims, kind, type_k in ((GQA2, "mixed", "f16"), (MQA, "sa", "q8_0")):
            window = (0, 0) if kind == "sa" else (4, 60)
            plan = build_plan(kind, dims, *window, seed=3, bias=True)
            with on_gpu(dims.write(Path(folder)), device) as model:
                session = model.session(n_ctx=2048, plan=plan, type_k=type_k, type_v=type_k)
                logits = session.eval(np.arange(137) % 250)
                for _ in range(N_TOKENS // 2):
                    logits = session.eval([int(logits[0].argmax())])
                assert session.attention == "fused", session.attention
                assert session.n_splits == 1, session.n_splits
                assert np.isfinite(logits).all()
                print(f"{kind} {type_k}: {session.n_past} tokens, {session.kernel}, {session.skip_report()}")


main()
