"""Reading a checkpoint folder: every damage has a name, and all of it is named at once."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pysa_convert.sources.checkpoint import INDEX, Checkpoint

from pysa.errors import ConvertError, ModelFileError, PysaError, UnsupportedModelError


def write_safetensors(
    path: Path, arrays: dict[str, np.ndarray[Any, Any]], change: Callable[[Any], None] | None = None
) -> None:
    """Writes f32 arrays; `change` edits the header first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    if change:
        change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float32)


def test_one_file(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"a": A, "b": B})
    checkpoint = Checkpoint(folder)
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.tensors["a"].shape == (2, 3)
    assert checkpoint.tensors["a"].read_rows(1, 1).tolist() == [[3, 4, 5]]
    assert checkpoint.tensors["b"].read_rows(1, 2).tolist() == [[1], [2]]


def test_shards_and_index(folder: Path) -> None:
    write_safetensors(folder / "x-1.safetensors", {"a": A})
    write_safetensors(folder / "x-2.safetensors", {"b": B})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}))
    assert sorted(Checkpoint(folder).tensors) == ["a", "b"]
    (folder / "x-2.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"x-2.safetensors: shard missing"):
        Checkpoint(folder)


def test_index_and_shards_must_agree(folder: Path) -> None:
    write_safetensors(folder / "x-1.safetensors", {"a": A, "c": B})
    write_safetensors(folder / "x-2.safetensors", {"b": B})
    names = {"a": "x-2.safetensors", "b": "x-2.safetensors", "d": "x-1.safetensors", "e": "../evil.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelFileError, match="4 faults") as caught:
        Checkpoint(folder)
    text = str(caught.value)
    assert "a: expected in x-2.safetensors as the index says, got x-1.safetensors" in text
    assert "c: in x-1.safetensors, but not in the index" in text
    assert "d: expected in x-1.safetensors as the index says, got no such tensor" in text
    assert "e: expected the name of a safetensors file, got '../evil.safetensors'" in text


def entry(**change: Any) -> Callable[[Any], None]:
    return lambda header: header["a"].update(change)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (entry(dtype="F4"), "dtype: expected one of"),
        (entry(dtype=7), "dtype: expected one of"),
        (entry(shape=[2, 4]), "expected 32 bytes for F32"),
        (entry(shape=[-2, 3]), "expected a shape and two offsets"),
        (entry(shape="2x3"), "expected a shape and two offsets"),
        (entry(shape=[2**40, 2**40]), "data_offsets: expected"),
        (entry(data_offsets=[24, 0]), "data_offsets: expected"),
        (entry(data_offsets=[0, 24, 48]), "expected a shape and two offsets"),
        (entry(data_offsets=[400, 424]), "the file may be cut short"),
        (entry(data_offsets=[8, 32]), "overlap"),
        (lambda header: header.update(a=3), "a: expected an object, got int"),
    ],
)
def test_header_damage_is_named(folder: Path, change: Callable[[Any], None], fault: str) -> None:
    write_safetensors(folder / "model.safetensors", {"a": A, "b": B}, change)
    with pytest.raises(ModelFileError) as caught:
        Checkpoint(folder)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"1234567", struct.pack("<Q", 2**63), struct.pack("<Q", 4) + b"[1]]", struct.pack("<Q", 2) + b"{x}"]
)
def test_broken_files_are_model_file_errors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        Checkpoint(folder)


def test_every_cut_of_a_file_is_found(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"a": A, "b": B})
    data = (folder / "model.safetensors").read_bytes()
    for n in range(len(data)):
        (folder / "model.safetensors").write_bytes(data[:n])
        with pytest.raises(ModelFileError):
            Checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "files", "error", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, [], UnsupportedModelError, "quantised by gptq"),
        ({"auto_map": {"AutoModel": "x.py"}}, [], UnsupportedModelError, "Python code of its own"),
        ({}, ["pytorch_model.bin"], ConvertError, "a pickle checkpoint can run code"),
        ({}, [], ModelFileError, r"no \*\.safetensors file"),
    ],
)
def test_other_kinds_of_checkpoints_are_refused(
    tmp_path: Path, config: dict[str, Any], files: list[str], error: type[PysaError], match: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(error, match=match):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"), [(None, "missing"), ("{", "expected JSON"), ("[]", "expected a JSON object")]
)
def test_config_damage_is_named(tmp_path: Path, text: str | None, fault: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=fault):
        Checkpoint(tmp_path)
