"""pysa-convert from end to end on small random checkpoints: keys, tensor bytes, vocabularies, plans, refusals."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.checkpoints import LLAMA3_ROPE, make_checkpoint
from pysa_convert import pipeline, prove
from pysa_convert.cli import main
from pysa_convert.container import GgufBytes
from pysa_convert.pipeline import Options, run
from pysa_convert.plans import PlanOptions
from pysa_convert.quantize_worker import TYPES

from pysa import _native
from pysa.errors import ConvertError, ModelFileError, PlanError, PysaError, UnsupportedModelError
from pysa.plan import Plan

CASES: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama", "head_dim": 20},
    "llama3": {"arch": "llama", "tokenizer": "llama3", "rope": LLAMA3_ROPE, "rope_theta": 5e5, "dtype": "bfloat16"},
    "sharded": {"arch": "llama", "tokenizer": "spm", "max_shard_size": "100KB", "tie": True},
    "spm": {"arch": "llama", "tokenizer": "sentencepiece", "attention_bias": True},
    "smollm": {"arch": "llama", "tokenizer": "smollm", "rope": {"rope_type": "linear", "factor": 2.0}},
    "qwen2": {"arch": "qwen2", "n_vocab_extra": 5, "dtype": "float16"},
    "qwen3": {"arch": "qwen3", "tie": True, "rope": {"rope_type": "yarn", "factor": 4.0}, "n_ctx": 2048},
}
EPS_BF16, EPS_F16 = 2.0**-8, 2.0**-11


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case, made once; tests must not change it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        if not (root / name).exists():
            make_checkpoint(root / name, **CASES[name])
        return root / name

    return make


@pytest.fixture(scope="session")
def dense(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `llama` case as a dense f16 GGUF."""
    path = tmp_path_factory.mktemp("dense") / "llama.gguf"
    run(Options(str(checkpoint("llama")), path))
    return path


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, **change: Any) -> None:
    data = json.loads(path.read_text("utf-8"))
    data.update(change)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}), "utf-8")


def source_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.torch import load_file

    return {name: t.float().numpy() for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def as_pairs(values: np.ndarray[Any, Any], n_head: int) -> np.ndarray[Any, Any]:
    """Reference for llama's order, one row at a time: pair i of a head is (i, i + d / 2)."""
    d = len(values) // n_head
    order = [h * d + i + half * d // 2 for h in range(n_head) for i in range(d // 2) for half in range(2)]
    return values[order]


def hf_name(name: str) -> str:
    fixed = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    stem, suffix = name.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{suffix}"
    _, il, part = stem.split(".")
    return f"model.layers.{il}.{parts[part]}.{suffix}"


@pytest.mark.parametrize("name", CASES)
def test_f32_tensors_equal_the_checkpoint(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    report = run(Options(str(checkpoint(name)), tmp_path / "m.gguf", outtype="f32"))
    assert report.n_ids_compared is not None
    assert report.n_ids_compared > 5000
    tensors = source_tensors(checkpoint(name))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    seen = set()
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        expected = tensors[hf_name(tensor.name)]
        if CASES[name]["arch"] == "llama" and tensor.name.split(".")[-2] in ("attn_q", "attn_k"):
            expected = as_pairs(expected, 6 if ".attn_q." in tensor.name else 2)
        assert tensor.data.tolist() == expected.tolist(), tensor.name
        seen.add(hf_name(tensor.name))
    assert seen == set(tensors)


def test_keys_of_each_architecture(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    wanted: dict[str, dict[str, Any]] = {
        "llama3": {"llama.vocab_size": 420, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 5e5},
        "smollm": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
        "qwen2": {"qwen2.attention.head_count_kv": 2, "qwen2.feed_forward_length": 160},
        "qwen3": {
            "qwen3.attention.key_length": 48,
            "qwen3.rope.scaling.type": "yarn",
            "qwen3.rope.scaling.original_context_length": 2048,
            "qwen3.context_length": 2048,
        },
    }
    for name, keys in wanted.items():
        run(Options(str(checkpoint(name)), tmp_path / f"{name}.gguf"))
        values = GgufBytes(tmp_path / f"{name}.gguf").values
        arch = CASES[name]["arch"]
        keys |= {"general.architecture": arch, "general.type": "model", "general.name": name, "general.file_type": 1}
        keys |= {f"{arch}.block_count": 3, f"{arch}.embedding_length": 96, f"{arch}.attention.head_count": 6}
        assert {key: values.get(key) for key in keys} == keys
        assert values[f"{arch}.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
        assert "<|im_start|>" in values["tokenizer.chat_template"]
        assert values["tokenizer.ggml.add_bos_token"] is (name == "llama3")
        assert values["tokenizer.ggml.eos_token_id"] == 2
    assert GgufBytes(tmp_path / "qwen2.gguf").values["tokenizer.ggml.tokens"][-1] == "[PAD424]"


def test_llama3_rope_factors_equal_transformers(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    import transformers

    run(Options(str(checkpoint("llama3")), tmp_path / "m.gguf"))
    (tensor,) = [t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight"]
    config = transformers.AutoConfig.from_pretrained(checkpoint("llama3"))
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(np.arange(0, 16, 2) / 16)
    assert tensor.data.tolist() == pytest.approx((plain / scaled.numpy()).tolist(), rel=1e-5)
    assert {1.0, 8.0} < set(tensor.data.tolist())  # both ends and something between


@pytest.mark.parametrize(
    ("outtype", "limit"), [("f16", EPS_F16), ("bf16", EPS_BF16), ("q8_0", 1 / 100), ("q4_0", 1 / 6)]
)
def test_outtypes_are_close_to_the_checkpoint(
    outtype: str, limit: float, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Limits: half a unit of the last place, or of a block's step, relative to the largest value of a row."""
    run(Options(str(checkpoint("qwen3")), tmp_path / "m.gguf", outtype=outtype))
    tensors = source_tensors(checkpoint("qwen3"))
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        expected = tensors[hf_name(tensor.name)]
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if expected.ndim == 1:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        else:
            assert tensor.tensor_type.name == outtype.upper()
        assert np.abs(found - expected).max() <= limit * np.abs(expected).max()


def test_k_quants_keep_the_plan(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    sharing = PlanOptions(share="pod", block=3, recent=32)
    options = Options(str(checkpoint("llama3")), tmp_path / "m.gguf", outtype="q4_k_m", sharing=sharing, n_threads=1)
    run(options)
    source = GgufBytes(tmp_path / "m.gguf")
    assert Plan.from_keys(source.values, 3, 6) == Plan.pod_blocks(3, 6, 3, 16, 32)
    assert source.values["general.file_type"] == 15
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]


def test_every_k_quant_offered_is_one_of_the_quantiser() -> None:
    assert set(TYPES) <= set(_native.quantize_types())


def test_the_files_open_in_the_native_module(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plan = Plan.pod_blocks(3, 6, 2, 4, 16)
    plan.score_layer[2, :3] = plan.score_head[2, :3] = -1
    plan.save(tmp_path / "plan.json")
    run(Options(str(checkpoint("spm")), tmp_path / "m.gguf", sharing=PlanOptions(plan=tmp_path / "plan.json")))
    model = _native.Model(str(tmp_path / "m.gguf"), n_threads=1)
    assert model.plan is not None
    assert Plan.from_json(model.plan) == plan
    assert (model.n_layer, model.n_head, model.n_head_kv, model.n_ctx_train) == (3, 6, 2, 512)


# ---- GGUF to GGUF


def test_a_plan_is_added_and_stripped_byte_for_byte(dense: Path, tmp_path: Path) -> None:
    shared, back = tmp_path / "shared.gguf", tmp_path / "back.gguf"
    run(Options(str(dense), shared, sharing=PlanOptions(share="sa", layers=((1, 2),))))
    before, after = GgufBytes(dense), GgufBytes(shared)
    assert [key.raw for key in after.keys if not key.name.startswith("pysa.")] == [key.raw for key in before.keys]
    assert after.view(after.data_offset, after.size_bytes) == before.view(before.data_offset, before.size_bytes)
    assert Plan.from_keys(after.values, 3, 6) == Plan.sa(3, 6, [(1, 2)])
    run(Options(str(shared), back, strip=True))
    assert back.read_bytes() == dense.read_bytes()


def test_a_new_plan_replaces_the_old_one(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    run(Options(str(dense), path, sharing=PlanOptions(share="sa", layers=((1, 2),))))
    run(Options(str(path), path, sharing=PlanOptions(share="streaming", sinks=2, recent=30), force=True))
    assert Plan.from_keys(GgufBytes(path).values, 3, 6) == Plan.streaming(3, 6, 2, 30)


def test_requantising_needs_floats_and_keeps_the_plan(dense: Path, tmp_path: Path) -> None:
    shared, small = tmp_path / "shared.gguf", tmp_path / "small.gguf"
    run(Options(str(dense), shared, sharing=PlanOptions(share="sa", layers=((2, 2),))))
    run(Options(str(shared), small, outtype="q8_0", n_threads=1))
    assert Plan.from_keys(GgufBytes(small).values, 3, 6) == Plan.sa(3, 6, [(2, 2)])
    with pytest.raises(ConvertError, match="expected f32, f16 or bf16 tensors, got Q8_0; quantising twice"):
        run(Options(str(small), tmp_path / "x.gguf", outtype="q4_0"))


def test_prune_drops_q_and_k_of_followers_only(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    report = run(Options(str(dense), path, sharing=PlanOptions(share="sa", layers=((1, 2),)), prune=True))
    gone = {t.name for t in GgufBytes(dense).tensors} - {t.name for t in GgufBytes(path).tensors}
    assert gone == {f"blk.{il}.attn_{x}.weight" for il in (1, 2) for x in "qk"}
    assert GgufBytes(path).values["pysa.pruned"] is True
    assert any("stock llama.cpp can no longer load this file" in note for note in report.notes)
    kept = {tensor.name: tensor for tensor in GgufBytes(dense).tensors}
    source, copy = GgufBytes(dense), GgufBytes(path)
    for tensor in copy.tensors:
        assert copy.tensor_view(tensor) == source.tensor_view(kept[tensor.name])
    with pytest.raises(ConvertError, match="expected a plan without a window"):
        run(Options(str(dense), tmp_path / "x.gguf", sharing=PlanOptions(share="pod", block=2), prune=True))
    with pytest.raises(ConvertError, match="a pruned file lacks the weights"):
        run(Options(str(path), tmp_path / "x.gguf", strip=True))


def test_pruning_from_the_checkpoint_equals_pruning_the_gguf(
    checkpoint: Callable[[str], Path], dense: Path, tmp_path: Path
) -> None:
    sharing = PlanOptions(share="sa", layers=((1, 1),))
    run(Options(str(checkpoint("llama")), tmp_path / "a.gguf", sharing=sharing, prune=True))
    run(Options(str(dense), tmp_path / "b.gguf", sharing=sharing, prune=True))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# ---- the command


def test_the_command_reports_and_refuses_to_replace(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(dense), "--share", "pod", "--block", "3", "--recent", "64"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "would write llama-pod.gguf" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "nothing was measured" in text
    assert "wrote llama-pod.gguf: llama as it is" in text
    assert main(arguments) == 1
    assert capsys.readouterr().err == "pysa-convert: llama-pod.gguf: exists; pass --force to replace it\n"
    assert main([*arguments, "--force", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["heads"] == {"owner": 6, "follower": 12, "local": 0}
    (row,) = [row for row in report["cache_f16"] if row["n"] == 8192]
    assert row["saving"] == pytest.approx(0.5 * 2 / 3 * (1 - 80 / 8192))


def test_usage_errors_of_the_pipeline_exit_with_2(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--strip", "--share", "sa", "--layers", "1-1"], [], ["--prune"], ["--strip", "--pre", "gpt-2"]):
        assert main([str(dense), *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_traceback_is_only_for_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([str(tmp_path / "none"), "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


# ---- what is refused


def test_a_wrong_pre_tokenizer_fails_the_proof_and_writes_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConvertError, match=r"'llama-bpe'.* differs from the checkpoint's at token"):
        run(Options(str(checkpoint("llama")), tmp_path / "m.gguf", pre="llama-bpe"))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_before_the_name_leaves_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prove_vocabulary", interrupted)
    assert main([str(checkpoint("qwen2")), "-o", str(tmp_path / "m.gguf"), "--quiet"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_reads_back_otherwise_is_refused(dense: Path) -> None:
    with pytest.raises(ConvertError, match="expected the plan that was written"):
        prove.prove_file(dense, Plan.dense(3, 6), pipeline.require_gguf(dense).dims())


def test_every_fault_of_config_and_tensors_at_once(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoint("llama"), tmp_path / "m")
    edit_json(folder / "config.json", rms_norm_eps=..., intermediate_size=161, hidden_act="gelu", num_hidden_layers=4)
    with pytest.raises(ModelFileError) as caught:
        run(Options(str(folder), tmp_path / "x.gguf"))
    text = str(caught.value)
    for fault in (
        "rms_norm_eps: expected a number above 0, got None",
        "hidden_act: expected silu, got 'gelu'",
        "model.layers.0.mlp.gate_proj.weight: expected shape (161, 96), got (160, 96)",
        "model.layers.3.self_attn.q_proj.weight: tensor missing",
    ):
        assert fault in text


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"architectures": ["FalconForCausalLM"]}, UnsupportedModelError, "FalconForCausalLM is not supported.*Qwen3"),
        ({"architectures": []}, ModelFileError, "architectures: expected a class name"),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            ModelFileError,
            "expected one of default, linear, yarn, llama3",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            ModelFileError,
            "low_freq_factor: expected a number",
        ),
        ({"vocab_size": 300}, ModelFileError, "expected an id below vocab_size 300"),
        ({"num_key_value_heads": 4}, ModelFileError, "num_key_value_heads: expected a divisor of 6, got 4"),
        ({"num_attention_heads": 0}, ModelFileError, "num_attention_heads: expected a number above 0, got 0"),
        (
            {"tie_word_embeddings": False, "vocab_size": 421},
            ModelFileError,
            "model.embed_tokens.weight: expected shape",
        ),
    ],
)
def test_bad_configs_are_named(
    change: dict[str, Any], error: type[Exception], match: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(checkpoint("llama"), tmp_path / "m")
    edit_json(folder / "config.json", **change)
    with pytest.raises(error, match=match):
        run(Options(str(folder), tmp_path / "x.gguf"))


def test_a_missing_shard_and_a_missing_tensor(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoint("sharded"), tmp_path / "m")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    shards[1].unlink()
    with pytest.raises(ModelFileError, match=f"{shards[1].name}: shard missing"):
        run(Options(str(folder), tmp_path / "x.gguf"))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelFileError, match="tensor missing"):
        run(Options(str(folder), tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "expected BPE with a ByteLevel pre-tokenizer"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, {"type": "ByteLevel"}]}},
            "--pre",
        ),
        ({"model": {"type": "Unigram", "vocab": []}}, "got Unigram"),
    ],
)
def test_other_tokenizers_are_refused(
    change: dict[str, Any], match: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(checkpoint("llama"), tmp_path / "m")
    edit_json(folder / "tokenizer.json", **change)
    with pytest.raises(UnsupportedModelError, match=match):
        run(Options(str(folder), tmp_path / "x.gguf"))


@pytest.mark.parametrize("seed", range(16))
def test_mangled_tokenizers_raise_only_our_errors(seed: int, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = copy_of(checkpoint(rng.choice(["llama3", "sharded", "qwen2"])), tmp_path / "m")
    path = folder / rng.choice(["tokenizer.json", "tokenizer_config.json"])
    data = json.loads(path.read_text("utf-8"))
    for _ in range(rng.randint(1, 3)):
        place: Any = data
        for _ in range(rng.randint(0, 3)):
            inner = [key for key in place if isinstance(place[key], dict) and place[key]]
            place = place[rng.choice(inner)] if inner else place
        key = rng.choice(list(place))
        place[key] = rng.choice([None, 3, -1, "x", [], [1], {}, {"a": 1}, [["a"]], True, [{"id": 2**70}]])
    path.write_text(json.dumps(data), "utf-8")
    with contextlib.suppress(PysaError):
        run(Options(str(folder), tmp_path / "x.gguf"))


def test_missing_tokenizers_are_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoint("llama"), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"expected tokenizer.json or tokenizer.model"):
        run(Options(str(folder), tmp_path / "x.gguf"))
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="tekken-only"):
        run(Options(str(folder), tmp_path / "x.gguf"))


def test_chat_templates_in_every_form(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoint("llama"), tmp_path / "m")
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    run(Options(str(folder), tmp_path / "a.gguf"))
    values = GgufBytes(tmp_path / "a.gguf").values
    assert (values["tokenizer.chat_template"], values["tokenizer.chat_template.tool_use"]) == ("D", "T")
    assert values["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("J")
    run(Options(str(folder), tmp_path / "b.gguf"))
    assert GgufBytes(tmp_path / "b.gguf").values["tokenizer.chat_template"] == "J"


def test_a_value_beyond_f16_is_refused_not_made_infinite(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "m", "llama", n_layer=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConvertError, match=r"up_proj.weight: expected values within f16's 65504, got 70000"):
        run(Options(str(folder), tmp_path / "x.gguf"))
    run(Options(str(folder), tmp_path / "x.gguf", outtype="bf16"))
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConvertError, match="expected finite values"):
        run(Options(str(folder), tmp_path / "y.gguf", outtype="q8_0"))


def test_the_hub_offline_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("network is unreachable\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert main(["some/model-name", "-o", str(tmp_path / "x.gguf")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "some/model-name: cannot be fetched from the hub: network is unreachable; give a folder instead" in line


def test_a_plan_that_does_not_fit_is_refused_with_all_faults(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.pod_blocks(3, 6, 3)
    plan.score_layer[2, 1] = 1
    plan.score_layer[1, 5] = 2
    plan.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="2 faults"):
        run(Options(str(dense), tmp_path / "x.gguf", sharing=PlanOptions(plan=tmp_path / "plan.json")))
    assert main([str(dense), "--plan", str(tmp_path / "plan.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_damaged_and_foreign_ggufs(dense: Path, tmp_path: Path) -> None:
    data = dense.read_bytes()
    sharing = PlanOptions(share="sa", layers=((1, 1),))
    for n in (0, 3, 40, 2000, len(data) // 2, len(data) - 200):
        (tmp_path / "cut.gguf").write_bytes(data[:n])
        with pytest.raises(ModelFileError):
            run(Options(str(tmp_path / "cut.gguf"), tmp_path / "x.gguf", sharing=sharing))
    (tmp_path / "other.gguf").write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloom", 1))
    with pytest.raises(UnsupportedModelError, match="expected llama, qwen2, qwen3, got bloom"):
        run(Options(str(tmp_path / "other.gguf"), tmp_path / "x.gguf", sharing=sharing))
    assert not (tmp_path / "x.gguf").exists()


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """A tensor is read by chunks: the largest piece in hand is bounded, whatever the tensor's size."""
    from pysa_convert.sources.checkpoint import SafeTensor
    from pysa_convert.tensors import N_CHUNK_BYTES, RowChunkTensor

    n_rows, n_row = 40_000, 512
    path = tmp_path / "big.bin"
    with open(path, "wb") as out:
        out.truncate(n_rows * n_row * 2)
    source = SafeTensor("big", "BF16", (n_rows, n_row), path, 0, n_rows * n_row * 2)
    tensor = RowChunkTensor("big.weight", source, 0, gguf.GGMLQuantizationType.F32)
    sizes = [len(chunk) for chunk in tensor.chunks()]
    assert sum(sizes) == tensor.size_bytes == n_rows * n_row * 4
    assert max(sizes) <= N_CHUNK_BYTES
