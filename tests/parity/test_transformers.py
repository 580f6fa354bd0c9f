"""Dense pysa equals transformers in float32 on the same checkpoint, through the converter.

The whole way is under test: permutations, rope factors, biases and norms must all land where the engine looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import LLAMA3_ROPE, make_checkpoint
from helpers.plans import relative_error
from helpers.reference import reference_logits
from numpy.typing import NDArray
from pysa_convert.cli import main

import pysa

torch = pytest.importorskip("torch", reason="the checkpoints are transformers' own")
transformers = pytest.importorskip("transformers", reason="it is what pysa is compared with")

# Float32 sums in another order, four layers deep; transformers' float32 angles differ by as much from float64.
LIMIT = 1e-4
N_TOK = 241

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama-tied-bias-head-dim": {
        "arch": "llama",
        "head_dim": 32,
        "attention_bias": True,
        "tie": True,
        "n_head": 4,
        "n_head_kv": 1,
    },
    "llama3-rope": {"arch": "llama", "tokenizer": "llama3", "rope": LLAMA3_ROPE, "rope_theta": 500000.0},
    "llama-linear-rope": {"arch": "llama", "rope": {"rope_type": "linear", "factor": 4.0}},
    "llama-sharded": {"arch": "llama", "max_shard_size": "200KB", "n_vocab_extra": 13},
    "qwen2": {"arch": "qwen2", "rope_theta": 1000000.0},
    "qwen2-yarn": {
        "arch": "qwen2",
        "rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "qwen3": {"arch": "qwen3", "head_dim": 64, "n_head": 4},
}


def transformers_logits(folder: Path, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        out = model.eval()(torch.tensor(tokens, dtype=torch.long)[None]).logits[0]
    return np.asarray(out.numpy(), dtype=np.float64)


@dataclass(frozen=True)
class Converted:
    """A GGUF and what transformers says about the checkpoint it came from."""

    path: Path
    tokens: NDArray[np.int32]
    logits: NDArray[np.float64]


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(folder / "hf", n_layer=4, seed=7, **CHECKPOINTS[request.param])
    out = folder / "model.gguf"
    assert main([str(folder / "hf"), "-o", str(out), "--outtype", "f32"]) == 0
    tokens = np.random.default_rng(1).integers(0, 300, N_TOK).astype(np.int32)
    return Converted(out, tokens, transformers_logits(folder / "hf", tokens))


@pytest.mark.parametrize("attention", ["composed", "fused"])
def test_logits_equal_transformers(converted: Converted, attention: str) -> None:
    assert np.ptp(converted.logits) > 5  # a flat output would equal anything
    options: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "attention": attention}
    with pysa.Model(converted.path, n_threads=1) as model, model.session(n_ctx=N_TOK, **options) as session:
        actual = session.eval(converted.tokens, logits="all")
    assert actual.shape == converted.logits.shape
    assert relative_error(actual, converted.logits) <= LIMIT
    assert np.array_equal(actual.argmax(1), converted.logits.argmax(1))


def test_reference_equals_transformers(converted: Converted) -> None:
    """What the shared attention is held against is itself held against transformers."""
    assert relative_error(reference_logits(converted.path, converted.tokens), converted.logits) <= LIMIT
