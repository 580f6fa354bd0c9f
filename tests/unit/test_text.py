"""Vocab and Sampler, the wrappers of libllama, and the quantiser's front door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_gguf import write_tiny_gguf

from pysa import ArgumentError, ModelFileError, _native

TEXT = "the thing and  two spaces .\n\tü 你好 🙂 'quoted' <|im_end|>"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def vocab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _native.Vocab:
    path = write_tiny_gguf(tmp_path_factory.mktemp("text") / "tiny.gguf", vocab=request.param)
    return _native.Vocab(str(path))


def test_round_trip(vocab: _native.Vocab) -> None:
    tokens = vocab.tokenize(TEXT, parse_special=False)
    assert vocab.detokenize(tokens) == TEXT.encode()
    assert vocab.tokenize("", add_special=False) == []
    assert vocab.detokenize([]) == b""


def test_pieces_join_to_the_text(vocab: _native.Vocab) -> None:
    tokens = vocab.tokenize("and the ü", add_special=False)
    assert b"".join(vocab.token_to_piece(token) for token in tokens).lstrip(b" ") == "and the ü".encode()


def test_special_tokens(tmp_path: Path) -> None:
    vocab = _native.Vocab(str(write_tiny_gguf(tmp_path / "a.gguf")))
    assert (vocab.n_tokens, vocab.bos, vocab.eos, vocab.eot) == (273, 269, 271, 271)
    assert (vocab.add_bos, vocab.add_eos) == (False, False)
    assert vocab.tokenize("<|im_end|>") == [271]
    assert 271 not in vocab.tokenize("<|im_end|>", parse_special=False)
    assert vocab.is_eog(271)
    assert not vocab.is_eog(5)
    assert vocab.token_to_piece(271) == b"<|im_end|>"
    assert vocab.token_to_piece(271, special=False) == b""
    spm = _native.Vocab(str(write_tiny_gguf(tmp_path / "b.gguf", vocab="llama")))
    assert spm.tokenize("the")[0] == spm.bos == 1
    assert spm.tokenize("the", add_special=False)[0] != 1


@pytest.mark.parametrize("token", [-1, 276, 2**31 - 1])
def test_token_out_of_range(vocab: _native.Vocab, token: int) -> None:
    with pytest.raises(ArgumentError, match=f"token: expected 0 to .*got {token}"):
        vocab.token_to_piece(token)
    with pytest.raises(ArgumentError):
        vocab.detokenize([1, token])
    assert not vocab.is_eog(token)


@pytest.mark.parametrize("pre", ["default", "falcon", "gpt-4o"])
def test_long_word_does_not_overrun_the_stack(tmp_path: Path, pre: str) -> None:
    vocab = _native.Vocab(str(write_tiny_gguf(tmp_path / "a.gguf", extra_kv={"tokenizer.ggml.pre": pre})))
    assert len(vocab.tokenize("." * 100_000)) == 100_000


def test_missing_character_is_an_error(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(276)], "tokenizer.ggml.token_type": [1] * 276}
    vocab = _native.Vocab(str(write_tiny_gguf(tmp_path / "a.gguf", vocab="llama", extra_kv=keys)))
    with pytest.raises(ModelFileError, match="no token"):
        vocab.tokenize("abc")


# -- sampler ---------------------------------------------------------------------------------------------------------


def logits(n: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, n).astype(np.float32)


def test_greedy_takes_the_largest() -> None:
    for seed in range(10):
        values = logits(seed=seed)
        assert _native.Sampler(temperature=0, top_k=5, top_p=0.5, min_p=0.1, seed=1).sample(values) == values.argmax()


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 128256])
def test_greedy_takes_the_first_of_equals(n: int) -> None:
    values = np.full(n, -np.inf, np.float32)
    sampler = _native.Sampler(temperature=0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
    for sign in (-1, 1):
        for at in sorted({n - 1, n // 2, n // 3, 0}, reverse=True):
            values[at] = sign * 1.5
            assert sampler.sample(values) == at
            assert sampler.sample(values - np.abs(logits(n))) == (values - np.abs(logits(n))).argmax()


def test_one_seed_one_sequence() -> None:
    def draw(seed: int) -> list[int]:
        sampler = _native.Sampler(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        return [sampler.sample(logits(seed=i)) for i in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_frequencies_follow_the_softmax() -> None:
    values = np.array([0.0, 1.0, 2.0, -np.inf], np.float32)
    sampler = _native.Sampler(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    counts = np.bincount([sampler.sample(values) for _ in range(20000)], minlength=4) / 20000
    expected = np.exp(values / 2) / np.exp(values / 2).sum()
    np.testing.assert_allclose(counts, expected, atol=0.015)  # 4 standard deviations
    assert counts[3] == 0


def test_top_k_and_min_p_exclude() -> None:
    values = logits()
    best = set(np.argsort(values)[-3:])
    top_k = _native.Sampler(temperature=5.0, top_k=3, top_p=1.0, min_p=0.0, seed=0)
    assert {top_k.sample(values) for _ in range(300)} == best
    min_p = _native.Sampler(temperature=1.0, top_k=0, top_p=1.0, min_p=0.5, seed=0)
    allowed = np.flatnonzero(values >= values.max() + np.log(0.5))
    assert {min_p.sample(values) for _ in range(300)} <= set(allowed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("min_p", -0.1),
        ("seed", 2**32 - 1),
    ],
)
def test_sampler_arguments(name: str, value: float) -> None:
    arguments = {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "seed": 0, name: value}
    with pytest.raises(ArgumentError, match=f"sampler: {name}: expected"):
        _native.Sampler(**arguments)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "bad", [[], [[1.0]], [1.0, float("nan")], [1.0, -float("nan")], [float("inf"), 0.0], [float("-inf")] * 2]
)
def test_sampler_logits(bad: list[float], temperature: float) -> None:
    sampler = _native.Sampler(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=0)
    with pytest.raises(ArgumentError, match="logits: expected"):
        sampler.sample(np.array(bad, np.float32))


# -- quantiser -------------------------------------------------------------------------------------------------------


def test_quantize(tmp_path: Path) -> None:
    src = write_tiny_gguf(tmp_path / "f32.gguf", n_embd=256, n_ff=512, head_dim=64, n_head=4, n_head_kv=2)
    assert "q4_k_m" in _native.quantize_types()
    _native.quantize(str(src), str(tmp_path / "out.gguf"), "q4_k_m", 2)
    types = {name: kind for name, kind, *_ in _native.gguf_read(str(tmp_path / "out.gguf"))["tensors"]}
    assert types["blk.0.attn_q.weight"] == "q4_K"
    assert types["output_norm.weight"] == "f32"


def test_quantize_arguments(tmp_path: Path) -> None:
    src = write_tiny_gguf(tmp_path / "a.gguf")
    with pytest.raises(ArgumentError, match=r"type: .*'q9_z'"):
        _native.quantize(str(src), str(tmp_path / "b.gguf"), "q9_z", 1)
    with pytest.raises(ArgumentError, match="same"):
        _native.quantize(str(src), str(src), "q8_0", 1)
    with pytest.raises(ModelFileError, match="cannot be opened"):
        _native.quantize(str(tmp_path / "absent"), str(tmp_path / "b.gguf"), "q8_0", 1)
