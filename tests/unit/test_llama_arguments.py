"""What pysa.Llama does with each constructor argument, and that the table, the signature and the page agree."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest

import pysa
from pysa.llama import GGML_TYPE_Q8_0, Llama
from pysa.llama.arguments import ARGUMENTS

OURS = ("plan", "attention", "v_skip", "device", "cache_dir", "cache_bytes")


def opened(path: Path, **arguments: Any) -> Llama:
    return Llama(path, n_ctx=64, n_threads=1, **arguments)


def test_the_table_has_every_argument_with_its_default() -> None:
    parameters = inspect.signature(Llama).parameters
    named = {name: p for name, p in parameters.items() if name not in ("model_path", "kwargs", *OURS)}
    assert list(named) == list(ARGUMENTS)
    assert {name: p.default for name, p in named.items()} == {name: a.default for name, a in ARGUMENTS.items()}


def test_the_page_says_what_becomes_of_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "binding.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]

    def of(begin: str) -> set[str]:
        (row,) = (row for row in rows if row.startswith(f"| {begin}"))
        names = set(row.split("`")[-2].split())
        if "yarn_*" in names:
            names = names - {"yarn_*"} | {name for name in ARGUMENTS if name.startswith("yarn_")}
        return names

    free = {"embedding", "verbose"}
    kinds = {kind: {name for name, a in ARGUMENTS.items() if a.kind == kind} for kind in ("used", "idle", "refused")}
    assert of("used") == kinds["used"] - free | {"model_path"}
    assert of("accepted") == free
    assert of("no effect") == kinds["idle"]
    assert of("would change") == kinds["refused"]
    assert of("pysa's own") == set(OURS)


def test_defaults_warn_of_nothing(dense_gguf: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Llama(dense_gguf) as llm:
            assert (llm.n_ctx(), llm.n_batch, llm.session.n_ubatch) == (512, 512, 512)
            assert (llm.session.native.type_k, llm.session.native.type_v) == ("f16", "f16")


def test_what_has_no_effect_is_named_in_one_warning(dense_gguf: Path) -> None:
    with pytest.warns(UserWarning, match="without effect") as caught:
        opened(dense_gguf, n_gpu_layers=-1, flash_attn=True, split_mode=2, f16_kv=True, n_parts=-1).close()
    assert len(caught) == 1
    text = str(caught[0].message)
    for part in ("n_gpu_layers=-1 (this build", "flash_attn=True", "split_mode=2 (one GPU", "unknown: f16_kv, n_parts"):
        assert part in text
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rope_freq_base": 1e6}, "rope_freq_base: expected the model's own 10000.0 or 0.0, got 1000000.0"),
        ({"rope_freq_base": "10000"}, "rope_freq_base: expected the model's own"),
        ({"rope_freq_scale": 0.5}, "rope_freq_scale: expected the model's own 1.0 or 0.0, got 0.5"),
        ({"rope_scaling_type": 1}, "rope_scaling_type: expected the model's own 0 or -1, got 1"),
        ({"yarn_ext_factor": 1.0}, "yarn_ext_factor: not supported"),
        ({"attention_type": 1}, "attention_type: expected the model's own 0 or -1, got 1"),
        ({"lora_path": "a.gguf"}, "lora_path: not supported.*merge the adapter"),
        ({"kv_overrides": {"x": 1}}, "kv_overrides: not supported"),
        ({"draft_model": object()}, "draft_model: not supported"),
        ({"tokenizer": object()}, "tokenizer: not supported"),
        ({"type_k": 3}, r"type_k: not a type of the cache: expected f32 \(0\)"),
        ({"type_v": "q5_1"}, "type_v: not a type of the cache"),
        ({"n_ctx": -1}, "n_ctx: out of range"),
        ({"n_batch": 0}, "n_batch: out of range"),
        ({"pooling_type": 4}, "pooling_type: expected 0"),
        ({"last_n_tokens_size": -1}, "last_n_tokens_size: out of range"),
        ({"logits_all": 1}, "logits_all: wrong type"),
        ({"cache_bytes": -1, "cache_dir": "x"}, "max_bytes: out of range"),
    ],
)
def test_what_would_change_the_result_is_refused(
    dense_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pysa.ArgumentError, match=message):
        Llama(dense_gguf, **{"n_threads": 1, **arguments})


def test_all_refused_arguments_are_named_at_once(dense_gguf: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_path.*; .*draft_model|draft_model.*; .*lora_path"):
        opened(dense_gguf, lora_path="a", draft_model=object())


def test_what_the_model_does_anyway_is_accepted(dense_gguf: Path) -> None:
    # LangChain's adapter always passes the first two.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(
            dense_gguf,
            rope_freq_base=10000.0,
            rope_freq_scale=1.0,
            rope_scaling_type=None,
            attention_type=0,
            n_threads_batch=1,
        ).close()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(pysa.ModelFileError, match="nowhere"):
        Llama(tmp_path / "nowhere.gguf")


def test_the_session_is_made_as_asked(dense_gguf: Path, tiny_plan: dict[str, Any]) -> None:
    with Llama(
        dense_gguf,
        n_ctx=0,
        n_batch=96,
        n_ubatch=40,
        n_threads=2,
        type_k=GGML_TYPE_Q8_0,
        type_v="f32",
        plan=tiny_plan,
        attention="composed",
        v_skip=0.0,
    ) as llm:
        session = llm.session.native
        assert (session.n_ctx, session.n_ubatch, llm.n_batch) == (2048, 40, 96)
        assert (session.type_k, session.type_v, session.attention, session.v_skip) == ("q8_0", "f32", "composed", 0.0)
        assert (llm.n_threads, llm.model.n_threads) == (2, 2)
        assert llm.session.plan.to_json()["score_layer"] == tiny_plan["score_layer"]


def test_vocab_only_has_tokens_and_no_session(dense_gguf: Path) -> None:
    with opened(dense_gguf, vocab_only=True) as llm:
        assert llm.detokenize(llm.tokenize(b"the and")) == b"the and"
        with pytest.raises(pysa.ArgumentError, match="vocab_only"):
            llm("the")
