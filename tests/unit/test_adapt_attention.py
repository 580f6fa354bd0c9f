"""The plan's attention in transformers: against the formula in float64, the float64 model, and pysa's engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import make_checkpoint
from helpers.plans import Dims, build_plan, relative_error
from helpers.reference import reference_logits
from pysa_convert.cli import main

import pysa
from pysa import Plan
from pysa.errors import ArgumentError, PlanError, UnsupportedModelError

torch = pytest.importorskip("torch", reason="pysa-adapt trains with it")
transformers = pytest.importorskip("transformers", reason="pysa-adapt trains its models")

from pysa_convert.adapt import window_softmax  # noqa: E402
from pysa_convert.adapt.shared_attention import share_attention  # noqa: E402
from pysa_convert.adapt.window_softmax import Window, WindowSoftmax  # noqa: E402

N_TOK = 141
DIMS = {
    "llama": Dims("llama", n_layer=4, n_head=6, n_head_kv=2, head_dim=16, n_embd=96, n_ff=160),
    "qwen2": Dims("qwen2", n_layer=3, n_head=4, n_head_kv=1, head_dim=24, n_embd=96, n_ff=160),
    "qwen3": Dims("qwen3", n_layer=3, n_head=6, n_head_kv=3, head_dim=48, n_embd=96, n_ff=160),
}
PLANS: dict[str, tuple[str, Plan]] = {
    "mixed": ("llama", build_plan("mixed", DIMS["llama"], 4, 21, bias=True, seed=1)),
    "mixed-keys": ("qwen3", build_plan("mixed", DIMS["qwen3"], 5, 17, distant="keys", bias=True, seed=2)),
    "sa": ("qwen2", build_plan("sa", DIMS["qwen2"], 0, 0, bias=True)),
    "pod-sinks-beyond-window": ("qwen2", build_plan("pod", DIMS["qwen2"], 16, 5)),
    "streaming": ("qwen3", build_plan("streaming", DIMS["qwen3"], 3, 70)),
    "window-beyond-prompt": ("llama", build_plan("mixed", DIMS["llama"], 11, 130, bias=True, seed=3)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are slower on two threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, with its f32 GGUF beside it."""
    root = tmp_path_factory.mktemp("adapt")

    def make(arch: str) -> Path:
        if not (root / arch).exists():
            dims = DIMS[arch]
            sizes = {"n_layer": dims.n_layer, "n_head": dims.n_head, "n_head_kv": dims.n_head_kv}
            make_checkpoint(root / arch, arch, head_dim=48 if arch == "qwen3" else None, seed=7, **sizes)
            assert main([str(root / arch), "-o", str(root / f"{arch}.gguf"), "--outtype", "f32", "--quiet"]) == 0
        return root / arch

    return make


def load(folder: Path, dtype: Any = None) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).eval()


def some_tokens() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 300, N_TOK).astype(np.int32)


def logits_of(model: Any, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].double().numpy())


# ---- against others


@pytest.mark.parametrize("name", PLANS)
def test_logits_equal_the_float64_model_and_the_engine(name: str, checkpoint: Callable[[str], Path]) -> None:
    arch, plan = PLANS[name]
    folder, tokens = checkpoint(arch), some_tokens()
    path = folder.with_name(f"{arch}.gguf")
    model = load(folder)
    share_attention(model, plan)
    found = logits_of(model, tokens)
    expected = reference_logits(path, tokens, plan)
    assert relative_error(found, expected) <= 5e-5  # float32 sums
    if plan.n_sink + plan.n_recent < N_TOK:
        assert relative_error(reference_logits(path, tokens), expected) > 0.05  # the plan decides something
    options: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "plan": plan, "n_ctx": N_TOK}
    for attention in ("composed", "fused"):
        with pysa.Model(path, n_threads=1) as engine, engine.session(attention=attention, **options) as session:
            assert relative_error(session.eval(tokens, logits="all"), found) <= 1e-3, attention


def test_dense_and_switched_off_equal_transformers_own_attention(checkpoint: Callable[[str], Path]) -> None:
    model, tokens = load(checkpoint("llama")), some_tokens()
    expected = logits_of(model, tokens)
    sharing = share_attention(model, PLANS["mixed"][1])
    assert relative_error(logits_of(model, tokens), expected) > 0.05
    with sharing.off():
        assert relative_error(logits_of(model, tokens), expected) <= 1e-5
    share_attention(model, None)
    assert relative_error(logits_of(model, tokens), expected) <= 1e-5


# ---- gradients


def plain(
    q: Any, k: Any, v: Any, near: Any, causal: Any, distant: Callable[[], Any] | None
) -> Any:  # the formula, whole matrices, nothing of pysa
    scores = q @ k.mT
    far = torch.full_like(scores, -torch.inf) if distant is None else distant()
    return torch.where(near, scores, far).masked_fill(~causal, -torch.inf).softmax(-1) @ v


def masks(n: int, n_sink: int, n_recent: int) -> tuple[Any, Any]:
    t, j = torch.arange(n)[:, None], torch.arange(n)[None]
    return (j < n_sink) | (j > t - n_recent), j <= t


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize(("n_sink", "n_recent"), [(2, 5), (0, 1), (5, 2), (7, 20), (0, 9), (3, 8)])
def test_gradients_equal_autograds_own(n_sink: int, n_recent: int, far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_softmax, "N_BLOCK_CPU", 8)  # several blocks, the last one shorter
    torch.manual_seed(0)
    q, k, q_far, k_far = (torch.randn(3, 37, 8, dtype=torch.float64, requires_grad=True) for _ in range(4))
    v = torch.randn(3, 37, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 1, 1, dtype=torch.float64)
    near, causal = masks(37, n_sink, n_recent)
    expected = plain(q, k, v, near, causal, (lambda: q_far @ k_far.mT + bias) if far else None)
    given = (q_far, k_far, bias) if far else (None, None, None)
    found = WindowSoftmax.apply(q, k, v, *given, Window(n_sink, n_recent))
    assert (found - expected).abs().max() < 1e-12
    inputs = [q, k, v, *([q_far, k_far] if far else [])]
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        assert (mine - theirs).abs().max() < 1e-12


class Plain:
    """The plan's attention of a whole model as whole float64 matrices; a second way, without pysa's own."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.seen = plan, dict[int, tuple[Any, Any]]()

    def __call__(self, module: Any, q: Any, k: Any, v: Any, _: Any, scaling: float, **__: Any) -> tuple[Any, None]:
        il, n_gqa = module.layer_idx, q.shape[1] // k.shape[1]
        q = q * scaling
        self.seen[il] = (q, k)
        near, causal = masks(q.shape[2], self.plan.n_sink, self.plan.n_recent)
        bias = self.plan.mass_bias
        heads = []
        for h in range(q.shape[1]):
            layer, head = int(self.plan.score_layer[il, h]), int(self.plan.score_head[il, h])
            distant = None
            if layer >= 0:
                q_far, k_far = self.seen[layer][0][:, head], self.seen[layer][1][:, head // n_gqa]
                b = 0.0 if bias is None else float(bias[il, h])
                distant = lambda q_far=q_far, k_far=k_far, b=b: q_far @ k_far.mT + b  # noqa: E731
            heads.append(plain(q[:, h], k[:, h // n_gqa], v[:, h // n_gqa], near, causal, distant))
        return torch.stack(heads, 2), None


@contextlib.contextmanager
def registered(function: Any) -> Iterator[str]:
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("plain_in_test", function)
    yield "plain_in_test"
    AttentionInterface._global_mapping.pop("plain_in_test")


def gradients(model: Any, tokens: Any) -> dict[str, Any]:
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    (hidden * torch.randn_like(hidden)).sum().backward()
    return {name: p.grad.clone() for name, p in model.model.named_parameters()}


def test_gradients_of_a_model_with_and_without_checkpointing(checkpoint: Callable[[str], Path]) -> None:
    plan = PLANS["mixed"][1]
    tokens = torch.from_numpy(some_tokens().astype(np.int64)).reshape(1, -1).repeat(2, 1)
    tokens[1] = tokens[1].flip(0)  # two rows that differ
    model = load(checkpoint("llama"), torch.float64)
    with registered(Plain(plan)) as name:
        model.set_attn_implementation(name)
        expected = gradients(model, tokens)
    share_attention(model, plan)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        found = gradients(model, tokens)
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= 1e-10 * value.abs().max(), (key, checkpointing)


def test_a_sources_query_learns_through_its_followers(checkpoint: Callable[[str], Path]) -> None:
    """SA: layer 2 follows layer 1, so its own q and k are in no score, and layer 1's get both layers' gradients."""
    model = load(checkpoint("llama"), torch.float64)
    tokens = torch.from_numpy(some_tokens().astype(np.int64))[None]
    share_attention(model, Plan.sa(4, 6, [(2, 2)]))
    model.train()
    hidden = model.model(input_ids=tokens).last_hidden_state
    hidden.square().sum().backward()
    layers = model.model.layers
    assert layers[2].self_attn.q_proj.weight.grad is None
    assert layers[1].self_attn.q_proj.weight.grad.abs().max() > 0
    # the output of layer 1's attention no longer counts: what is left comes through the follower
    model.zero_grad(set_to_none=True)
    layers[1].self_attn.o_proj.weight.data.zero_()
    model.model(input_ids=tokens).last_hidden_state.square().sum().backward()
    assert layers[1].self_attn.q_proj.weight.grad.abs().max() > 0
    assert layers[3].self_attn.q_proj.weight.grad.abs().max() > 0


# ---- what is refused


def test_what_cannot_be_computed_is_refused(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("llama"))
    tokens = torch.from_numpy(some_tokens().astype(np.int64))[None]
    plan = PLANS["mixed"][1]
    with pytest.raises(PlanError, match=r"skip_gate: expected 1\.0 for training, got 0\.5"):
        share_attention(model, replace(plan, skip_gate=0.5))
    with pytest.raises(PlanError, match="expected 4 layers as the model has, got 3"):
        share_attention(model, PLANS["mixed-keys"][1])
    share_attention(model, plan)
    mask = torch.ones_like(tokens)
    assert model(tokens, attention_mask=mask).logits.shape == (1, N_TOK, 420)
    mask[0, :3] = 0
    with pytest.raises(ArgumentError, match="without padding"):
        model(tokens, attention_mask=mask)
    with pytest.raises(ArgumentError, match="without padding, cache"):
        model.generate(tokens, max_new_tokens=2)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ArgumentError, match="use_reentrant=False"):
        model(tokens)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel: expected one of LlamaForCausalLM"):
        share_attention(transformers.GPT2LMHeadModel(config), plan)
