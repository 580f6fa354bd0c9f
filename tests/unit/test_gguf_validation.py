"""What pysa says about a wrong GGUF, rule by rule: the container, the hyper-parameters, the plan, the vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from helpers.tiny_gguf import bpe_vocab, random_plan, spm_vocab, write_tiny_gguf

from pysa import ArgumentError, ModelFileError, PlanError, UnsupportedModelError, _native

# -- the container ---------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key_u32(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, kind, offset)


def container(
    *, keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), n_data: int = 0, version: int = 3, align: int = 32
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    if not tensors:
        return header
    return header + bytes(-len(header) % align) + bytes(n_data)


F32, Q4_0 = 0, 2
A = tensor("a", (4, 3), F32, 0)

CONTAINERS: dict[str, tuple[bytes, str]] = {
    "magic": (b"GGML" + bytes(40), "magic.*'GGUF'.*'GGML'"),
    "version 1": (container(version=1), "version: expected 2 or 3, got 1"),
    "big endian": (container(version=3 << 24), "big-endian"),
    "too many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "key count.*9223372036854775808"),
    "too many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "tensor count.*1099511627776"),
    "value type": (
        container(keys=(text("k") + struct.pack("<I", 13),)),
        "'k': expected a value type.*got 13",
    ),
    "string longer than the file": (container(keys=(struct.pack("<Q", 2**60) + b"abc",)), "inside a string"),
    "array longer than the file": (
        container(keys=(text("k") + struct.pack("<IIQ", 9, 4, 2**62),)),
        "'k': expected at most .* items",
    ),
    "nested array": (container(keys=(text("k") + struct.pack("<IIQ", 9, 9, 0),)), "'k'.*nested arrays"),
    "bool 2": (container(keys=(text("k") + struct.pack("<IB", 7, 2),)), "'k': expected a bool of 0 or 1, got 2"),
    "empty key": (container(keys=(key_u32("", 1),)), "key 0: expected a name"),
    "key not utf-8": (container(keys=(text(b"\xff\xfe") + struct.pack("<II", 4, 1),)), r"key 0.*\\xff\\xfe"),
    "key with a zero": (container(keys=(key_u32("a\0b", 1),)), r"a\\x00b"),
    "duplicate key": (container(keys=(key_u32("k", 1), key_u32("k", 2))), "key 1.*'k' a second time"),
    "alignment type": (
        container(keys=(text("general.alignment") + struct.pack("<IQ", 10, 32),)),
        "general.alignment: expected u32, got u64",
    ),
    "alignment 48": (container(keys=(key_u32("general.alignment", 48),)), "general.alignment.*got 48"),
    "alignment 8": (container(keys=(key_u32("general.alignment", 8),)), "general.alignment.*got 8"),
    "no dimensions": (container(tensors=(tensor("a", (), F32, 0),)), "'a': expected 1 to 4 dimensions, got 0"),
    "five dimensions": (container(tensors=(tensor("a", (1,) * 5, F32, 0),)), "'a': expected 1 to 4 dimensions, got 5"),
    "negative dimension": (container(tensors=(tensor("a", (4, -1), F32, 0),)), "'a': expected dimensions.*got -1"),
    "element overflow": (container(tensors=(tensor("a", (2**40, 2**40), F32, 0),)), "'a'.*2\\^63-1 elements"),
    "byte overflow": (container(tensors=(tensor("a", (2**62,), F32, 0),)), "'a'.*below 2\\^64 bytes"),
    "unknown type": (
        container(tensors=(tensor("a", (32,), 9999, 0),)),
        "'a': expected a type of ggml, got.*9999",
    ),
    "removed type": (container(tensors=(tensor("a", (32,), 4, 0),)), "'a': expected a type of ggml, got number 4"),
    "row not whole blocks": (container(tensors=(tensor("a", (33, 2), Q4_0, 0),)), "'a'.*multiple of 32.*q4_0, got 33"),
    "long name": (container(tensors=(tensor("n" * 64, (4,), F32, 0),)), "name of 1 to 63 bytes"),
    "duplicate tensor": (container(tensors=(A, tensor("a", (4, 3), F32, 64)), n_data=128), "'a'.*second time"),
    "overlap": (container(tensors=(A, tensor("b", (4,), F32, 32)), n_data=128), "'b': expected offset 64.*got 32"),
    "gap": (container(tensors=(A, tensor("b", (4,), F32, 96)), n_data=128), "'b': expected offset 64.*got 96"),
    "unaligned": (container(tensors=(A, tensor("b", (4,), F32, 48)), n_data=128), "'b': expected offset 64.*got 48"),
    "data cut": (container(tensors=(A,), n_data=47), "'a': the file ends inside it: expected 48 bytes.*got 47"),
}


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_container_fault(tmp_path: Path, name: str) -> None:
    data, message = CONTAINERS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=f"(?s)^{path}: .*{message}"):
        _native.gguf_read(str(path))


def test_all_container_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(container(keys=(key_u32("k", 1), key_u32("k", 2)), tensors=(tensor("a", (33,), Q4_0, 0),)))
    with pytest.raises(ModelFileError, match=r"(?s)2 faults:.*'k' a second time.*'a'.*multiple of 32"):
        _native.gguf_read(str(path))


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.gguf: cannot be opened: No such file"):
        _native.gguf_read(str(tmp_path / "absent.gguf"))
    with pytest.raises(ModelFileError, match="expected a regular file"):
        _native.gguf_read(str(tmp_path))
    (tmp_path / "empty").touch()
    with pytest.raises(ModelFileError, match="empty file"):
        _native.gguf_read(str(tmp_path / "empty"))


def test_read_back(tmp_path: Path) -> None:
    keys = (
        key_u32("general.alignment", 64),
        text("f") + struct.pack("<If", 6, 0.5),
        text("i") + struct.pack("<Iq", 11, -(2**63)),
        text("u") + struct.pack("<IQ", 10, 2**64 - 1),
        text("t") + struct.pack("<I", 8) + text(b"\xff\xc3\xbc"),
        text("b") + struct.pack("<IIQBB", 9, 7, 2, 0, 1),
        text("s") + struct.pack("<IIQ", 9, 8, 2) + text("") + text("ü"),
        text("n") + struct.pack("<IIQ", 9, 1, 0),
    )
    path = tmp_path / "sound.gguf"
    path.write_bytes(
        container(keys=keys, tensors=(A, tensor("b", (32, 5), Q4_0, 64)), n_data=64 + 90, align=64, version=2)
    )
    read = _native.gguf_read(str(path))
    assert read["version"] == 2
    assert read["alignment"] == 64
    assert read["data_offset"] % 64 == 0
    assert read["size_bytes"] == path.stat().st_size
    assert read["metadata"] == {
        "general.alignment": 64,
        "f": 0.5,
        "i": -(2**63),
        "u": 2**64 - 1,
        "t": "\udcffü",
        "b": [False, True],
        "s": ["", "ü"],
        "n": [],
    }
    assert read["types"]["b"] == (9, 7)
    assert read["types"]["i"] == (11, None)
    assert read["tensors"] == [("a", "f32", (4, 3), 0, 48), ("b", "q4_0", (32, 5), 64, 90)]


# -- hyper-parameters ------------------------------------------------------------------------------------------------

U64, I32 = GGUFValueType.UINT64, GGUFValueType.INT32
I32_ARRAY = (GGUFValueType.ARRAY, GGUFValueType.INT32)

HPARAMS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing": ({"llama.context_length": None}, ModelFileError, "llama.context_length: missing: expected u32"),
    "type": ({"llama.block_count": (U64, 2)}, ModelFileError, "llama.block_count: expected u32, got u64"),
    "no layers": ({"llama.block_count": 0}, ModelFileError, "llama.block_count: expected 1 to 512, got 0"),
    "many layers": ({"llama.block_count": 513}, ModelFileError, "llama.block_count: expected 1 to 512, got 513"),
    "heads": ({"llama.attention.head_count_kv": 4}, ModelFileError, "head_count_kv: expected a divisor.*6, got 4"),
    "head array": (
        {"llama.attention.head_count_kv": (I32_ARRAY, [2, 3])},
        UnsupportedModelError,
        "same count in every layer, got 2 and 3",
    ),
    "head array length": (
        {"llama.attention.head_count": (I32_ARRAY, [6])},
        ModelFileError,
        "2 values.*got 1",
    ),
    "odd head": ({"llama.attention.key_length": 31}, ModelFileError, "key_length: expected an even number, got 31"),
    "partial rope": ({"llama.rope.dimension_count": 16}, UnsupportedModelError, "rope.dimension_count.*32, got 16"),
    "eps": (
        {"llama.attention.layer_norm_rms_epsilon": float("nan")},
        ModelFileError,
        "epsilon: expected a finite.*nan",
    ),
    "freq base": ({"llama.rope.freq_base": 0.0}, ModelFileError, "freq_base: expected a finite number above 0"),
    "scaling": ({"llama.rope.scaling.type": "cubic"}, ModelFileError, "expected none, linear or yarn, got 'cubic'"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, UnsupportedModelError, "got 'longrope'"),
    "factor": (
        {"llama.rope.scaling.factor": -2.0},
        ModelFileError,
        "factor: expected a finite number of at least 0",
    ),
    "experts": ({"llama.expert_count": 8}, UnsupportedModelError, "expert_count: expected 0.*got 8"),
    "encoder": ({"llama.attention.causal": False}, UnsupportedModelError, "attention.causal: expected true, got false"),
    "split": ({"split.count": (GGUFValueType.UINT16, 2)}, UnsupportedModelError, "got 2 shards; merge it first"),
    "mmproj": ({"general.type": "mmproj"}, UnsupportedModelError, "general.type: expected 'model', got 'mmproj'"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, ModelFileError, "tokenizer.ggml.tokens: missing"),
    "tokens": ({"tokenizer.ggml.tokens": ["a", "b"]}, ModelFileError, "expected 273 tokens, one per row.*got 2"),
}


@pytest.mark.parametrize("name", list(HPARAMS))
def test_hparams_fault(tmp_path: Path, name: str) -> None:
    keys, error, message = HPARAMS[name]
    path = write_tiny_gguf(tmp_path / "bad.gguf", extra_kv=keys)
    with pytest.raises(error, match=f"(?s)^{path}: .*{message}"):
        _native.gguf_plan(str(path))


def test_unknown_architecture(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "bad.gguf", "gemma3")
    with pytest.raises(UnsupportedModelError, match="expected one of llama, qwen2, qwen3, got 'gemma3'"):
        _native.gguf_plan(str(path))


def test_all_hparams_faults_at_once(tmp_path: Path) -> None:
    keys = {"llama.context_length": None, "llama.rope.freq_base": -1.0, "llama.embedding_length": "96"}
    path = write_tiny_gguf(tmp_path / "bad.gguf", extra_kv=keys)
    with pytest.raises(ModelFileError, match="3 faults"):
        _native.gguf_plan(str(path))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_uniform_head_arrays_are_read(tmp_path: Path, arch: str) -> None:
    keys = {f"{arch}.attention.head_count": (I32_ARRAY, [6, 6]), f"{arch}.attention.head_count_kv": (I32_ARRAY, [2, 2])}
    assert _native.gguf_plan(str(write_tiny_gguf(tmp_path / "a.gguf", arch, extra_kv=keys))) is None


# -- the plan --------------------------------------------------------------------------------------------------------

N_LAYER, N_HEAD, N_HEAD_KV = 4, 6, 2


def owners(**fields: Any) -> dict[str, Any]:
    plan = {
        "version": 1,
        "distant": "scores",
        "n_sink": 2,
        "n_recent": 8,
        "n_layer": N_LAYER,
        "n_head": N_HEAD,
        "score_layer": [[il] * N_HEAD for il in range(N_LAYER)],
        "score_head": [list(range(N_HEAD)) for _ in range(N_LAYER)],
    }
    return {**plan, **fields}


def with_sources(*sources: tuple[int, int, int, int], **fields: Any) -> dict[str, Any]:
    """An owners' plan in which head (il, h) has the source (sl, sh), for each (il, h, sl, sh)."""
    plan = owners(**fields)
    for il, h, sl, sh in sources:
        plan["score_layer"][il][h] = sl
        plan["score_head"][il][h] = sh
    return plan


def bias(value: float) -> list[list[float]]:
    rows = np.zeros((N_LAYER, N_HEAD)).tolist()
    rows[1][2] = value
    return rows


# Rules that hold for a plan in a file as well as for one in a dict.
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "upward": (
        with_sources((1, 0, 2, 0)),
        "layer 1 head 0: expected a source in this layer or an.*got layer 2",
    ),
    "same layer": (with_sources((1, 0, 1, 3)), "layer 1 head 0: expected an owner to point at itself.*layer 1 head 3"),
    "chain": (
        with_sources((1, 0, 0, 0), (2, 4, 1, 0)),
        "layer 2 head 4: expected a source that is an owner, got layer 1 head 0, which is a follower",
    ),
    "local source": (
        with_sources((1, 0, -1, -1), (2, 4, 1, 0)),
        "layer 2 head 4: expected a source that is an owner, got layer 1 head 0, which is a local head",
    ),
    "half local": (
        with_sources((1, 0, -1, 0)),
        "layer 1 head 0: .*or -1 for both, got layer -1 head 0",
    ),
    "layer -2": (with_sources((1, 0, -2, -2)), "layer 1 head 0: expected a source within layers 0..3"),
    "layer too large": (
        with_sources((3, 0, 4, 0)),
        "layer 3 head 0: .*within layers 0..3.*got layer 4",
    ),
    "head too large": (with_sources((3, 0, 1, 6)), "layer 3 head 0: expected a source within .*heads 0..5.*head 6"),
    "far out of range": (with_sources((3, 0, 2**31 - 1, -(2**31))), "layer 3 head 0: expected a source within"),
    "other group": (
        with_sources((1, 0, 0, 5), (1, 1, 0, 0), (1, 2, 0, 0), distant="keys"),
        "layer 1 head 0: distant 'keys' needs a source in the same KV group: expected group 0, got 1",
    ),
    "two source layers": (
        with_sources((2, 0, 0, 0), (2, 1, 1, 1), (2, 2, 0, 2), distant="keys"),
        "layer 2 head 1: distant 'keys' needs one source layer per KV group: expected layer 0, got 1",
    ),
    "owner beside follower": (
        with_sources((2, 3, 0, 3), distant="keys"),
        "layer 2 head 4: distant 'keys' needs one source layer per KV group: expected layer 0, got 2",
    ),
    "sinks alone": (owners(n_sink=2, n_recent=0), "n_sink: expected 0, as n_recent is 0, got 2"),
    "local without a window": (
        with_sources((1, 0, -1, -1), n_sink=0, n_recent=0),
        "layer 1 head 0: a local head needs a window",
    ),
    "bias nan": (owners(mass_bias=bias(float("nan"))), "mass_bias: expected finite numbers, got nan at index 8"),
    "bias inf": (owners(mass_bias=bias(float("inf"))), "mass_bias: expected finite numbers, got inf at index 8"),
    "gate 0": (owners(skip_gate=0.0), "skip_gate: expected a number above 0 and at most 1, got 0"),
    "gate above 1": (owners(skip_gate=1.5), "skip_gate: .*got 1.5"),
    "gate nan": (owners(skip_gate=float("nan")), "skip_gate: .*got nan"),
    "distant": (owners(distant="values"), "distant: expected 'scores' or 'keys', got 'values'"),
    "version": (owners(version=2), "version: expected 1, got 2"),
}


@pytest.mark.parametrize("name", list(RULES))
def test_rule_in_a_dict(name: str) -> None:
    plan, message = RULES[name]
    with pytest.raises(PlanError, match=f"(?s)^plan: .*{message}"):
        _native.check_plan(plan, N_HEAD_KV)


@pytest.mark.parametrize("name", list(RULES))
def test_rule_in_a_file(tmp_path: Path, name: str) -> None:
    plan, message = RULES[name]
    path = write_tiny_gguf(tmp_path / "bad.gguf", n_layer=N_LAYER, plan=plan)
    with pytest.raises(PlanError, match=f"(?s)^{path}: .*{message}"):
        _native.gguf_plan(str(path))


DICTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, "version: missing"),
    "unknown key": (owners(n_recnt=5), "'n_recnt': expected a key of plan version 1"),
    "version is a bool": (owners(version=True), "version: expected 1, got True"),
    "version text": (owners(version="1"), "version: expected 1, got '1'"),
    "no distant": ({k: v for k, v in owners().items() if k != "distant"}, "distant: missing"),
    "enabled 1": (owners(enabled=1), "enabled: expected a bool, got int"),
    "method": (owners(method=3), "method: expected a string, got int"),
    "negative window": (owners(n_recent=-1), "n_recent: expected 0 to 2147483647, got -1"),
    "huge window": (owners(n_recent=2**70), "n_recent: expected an integer"),
    "float window": (owners(n_recent=8.0), "n_recent: expected an integer, got float"),
    "rows": (owners(score_layer=[[0] * 6]), "score_layer: expected 4 rows, one per layer, got 1"),
    "ragged": (
        owners(score_head=[[0] * 6, [0] * 5, [0] * 6, [0] * 6]),
        "score_head: row 1: .*6 values.*got 5",
    ),
    "no list": (owners(score_head="0"), "score_head: expected a list of rows, got str"),
    "float source": (owners(score_layer=[[0.0] * 6] * 4), "score_layer: row 0: expected numbers.*float"),
    "large source": (owners(score_layer=[[2**31] * 6] * 4), "score_layer: row 0: expected numbers"),
    "bias text": (owners(mass_bias=[["0"] * 6] * 4), "mass_bias: row 0: expected numbers.*str"),
    "gate": (owners(skip_gate="1"), "skip_gate: expected a number, got str"),
}


@pytest.mark.parametrize("name", list(DICTS))
def test_dict_fault(name: str) -> None:
    plan, message = DICTS[name]
    with pytest.raises(PlanError, match=f"(?s)^plan: .*{message}"):
        _native.check_plan(plan, N_HEAD_KV)


def test_all_plan_faults_at_once() -> None:
    plan = with_sources((1, 0, 2, 0), (3, 5, 9, 9), skip_gate=2.0, mass_bias=bias(float("nan")))
    with pytest.raises(PlanError, match="4 faults") as raised:
        _native.check_plan(plan, N_HEAD_KV)
    assert all(part in str(raised.value) for part in ("skip_gate", "mass_bias", "layer 1 head 0", "layer 3 head 5"))


def test_head_counts_must_divide() -> None:
    with pytest.raises(ArgumentError, match="n_head_kv: expected a divisor of n_head, 6, got 4"):
        _native.check_plan(owners(), 4)


FILE_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "enabled type": ({"pysa.enabled": 1}, "pysa.enabled: expected bool, got u32"),
    "version type": ({"pysa.version": (I32, 1)}, "pysa.version: expected u32, got i32"),
    "version first": ({"pysa.version": 7, "pysa.enabled": "x"}, "pysa.version: expected 1, got 7"),
    "no version": ({"pysa.version": None}, "pysa.version: missing, though pysa.enabled is there"),
    "source type": (
        {"pysa.score_layer": ((GGUFValueType.ARRAY, GGUFValueType.UINT32), [0] * 24)},
        "pysa.score_layer: expected array of i32, got array of u32",
    ),
    "source length": ({"pysa.score_head": [0] * 23}, "score_head: values: expected 24, got 23"),
    "bias length": ({"pysa.mass_bias": [0.0] * 25}, "mass_bias: values: expected 24, got 25"),
    "bias type": (
        {"pysa.mass_bias": ((GGUFValueType.ARRAY, GGUFValueType.FLOAT64), [0.0] * 24)},
        "pysa.mass_bias: expected array of f32, got array of f64",
    ),
    "window": ({"pysa.n_recent": 2**31}, "pysa.n_recent: expected 0 to 2147483647, got 2147483648"),
    "no window": ({"pysa.n_recent": None}, "pysa.n_recent: missing"),
    "unknown key": ({"pysa.n_recnt": 4}, "'pysa.n_recnt': expected a key of plan version 1"),
}


@pytest.mark.parametrize("name", list(FILE_KEYS))
def test_plan_key_fault(tmp_path: Path, name: str) -> None:
    keys, message = FILE_KEYS[name]
    path = write_tiny_gguf(tmp_path / "bad.gguf", n_layer=N_LAYER, plan=owners(), extra_kv=keys)
    with pytest.raises(PlanError, match=f"(?s)^{path}: .*{message}"):
        _native.gguf_plan(str(path))


@pytest.mark.parametrize("distant", ["scores", "keys"])
@pytest.mark.parametrize("seed", range(5))
def test_plan_round_trip(tmp_path: Path, distant: str, seed: int) -> None:
    plan = random_plan(N_LAYER, N_HEAD, N_HEAD_KV, seed=seed, distant=distant, skip_gate=0.75, enabled=seed % 2 == 0)
    keys = {"pysa.calibration.n_tokens": 5, "pysa.pruned": False}
    path = write_tiny_gguf(tmp_path / "plan.gguf", n_layer=N_LAYER, plan=plan, extra_kv=keys)
    assert _native.check_plan(plan, N_HEAD_KV) == plan
    assert _native.gguf_plan(str(path)) == plan


def test_defaults_are_filled_in() -> None:
    plan = _native.check_plan(owners(n_sink=0, n_recent=0, mass_bias=None), N_HEAD_KV)
    assert (plan["enabled"], plan["method"], plan["skip_gate"]) == (True, "custom", 1.0)
    assert "mass_bias" not in plan


# -- the vocabulary --------------------------------------------------------------------------------------------------


def edited(vocab: Callable[[], dict[str, Any]], key: str, edit: Callable[[list[Any]], None]) -> dict[str, Any]:
    values = list(vocab()[f"tokenizer.ggml.{key}"])
    edit(values)
    return {f"tokenizer.ggml.{key}": values}


def put(index: int, value: Any) -> Callable[[list[Any]], None]:
    return lambda values: values.__setitem__(index, value)


G = "tokenizer.ggml."
VOCABS: dict[str, tuple[str, dict[str, Any], str]] = {
    "duplicate": ("gpt2", edited(bpe_vocab, "tokens", put(5, "a")), "'a' a second time"),
    "duplicate up to a zero": ("gpt2", edited(bpe_vocab, "tokens", put(5, "a\0b")), "'a' a second time"),
    "duplicate of an empty one": (
        "llama",
        edited(spm_vocab, "tokens", lambda t: (t.__setitem__(260, ""), t.__setitem__(261, "[EMPTY_260]"))),  # type: ignore[func-returns-value]
        "'\\[EMPTY_260\\]' a second time",
    ),
    "types short": ("gpt2", edited(bpe_vocab, "token_type", lambda t: t.pop()), "273 values, one per token, got 272"),
    "type out of range": (
        "gpt2",
        edited(bpe_vocab, "token_type", put(3, 9)),
        "token 3: expected a type.*got 9",
    ),
    "byte token": ("llama", edited(spm_vocab, "token_type", put(270, 6)), "token 270: expected a byte token"),
    "scores short": ("llama", edited(spm_vocab, "scores", lambda s: s.pop()), "scores: expected 276 values"),
    "scores nan": (
        "llama",
        edited(spm_vocab, "scores", put(4, float("nan"))),
        "scores: expected numbers, got NaN.*4",
    ),
    "scores type": ("llama", {G + "scores": ["x"]}, "scores: expected array of f32, got array of string"),
    "no merges": ("gpt2", {G + "merges": None}, "merges: missing"),
    "merge": ("gpt2", edited(bpe_vocab, "merges", put(2, "ab")), "merges: expected two parts.*'ab' at index 2"),
    "half a merge": ("gpt2", edited(bpe_vocab, "merges", put(2, "ab ")), "'ab ' at index 2"),
    "bos out of range": ("gpt2", {G + "bos_token_id": 273}, "bos_token_id: expected a token below 273, got 273"),
    "bos type": ("gpt2", {G + "bos_token_id": (I32, 1)}, "bos_token_id: expected u32, got i32"),
    "add_bos type": ("gpt2", {G + "add_bos_token": 1}, "add_bos_token: expected bool, got u32"),
    "bos without id": (
        "gpt2",
        {G + "add_bos_token": True, G + "bos_token_id": None, G + "pre": "glm4"},
        "bos_token_id: missing: expected u32, as the vocabulary adds",
    ),
    "no model": ("gpt2", {G + "model": None}, "tokenizer.ggml.model: missing"),
}


@pytest.mark.parametrize("name", list(VOCABS))
def test_vocab_fault(tmp_path: Path, name: str) -> None:
    vocab, keys, message = VOCABS[name]
    path = write_tiny_gguf(tmp_path / "bad.gguf", vocab=vocab, extra_kv=keys)
    with pytest.raises(ModelFileError, match=f"(?s)^{path}: .*{message}"):
        _native.Vocab(str(path))


@pytest.mark.parametrize("kind", ["t5", "bert", "rwkv", "none", "whitespace", "hybriddna"])
def test_other_tokenizers_are_refused(tmp_path: Path, kind: str) -> None:
    path = write_tiny_gguf(tmp_path / "bad.gguf", extra_kv={G + "model": kind})
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.ggml.model: expected llama or gpt2, got '{kind}'"):
        _native.Vocab(str(path))


@pytest.mark.parametrize("pre", ["whitespace", "gemma4", "unheard-of"])
def test_unknown_pre_tokenizers_are_refused(tmp_path: Path, pre: str) -> None:
    path = write_tiny_gguf(tmp_path / "bad.gguf", extra_kv={G + "pre": pre})
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.ggml.pre: .*got '{pre}'"):
        _native.Vocab(str(path))


def test_pieces_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    keys = edited(bpe_vocab, "tokens", put(5, "\x80" * 30000))
    path = write_tiny_gguf(tmp_path / "bad.gguf", extra_kv=keys)
    with pytest.raises(ModelFileError, match="expected byte-level texts"):
        _native.Vocab(str(path))
