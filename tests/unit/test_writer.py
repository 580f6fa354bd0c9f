"""The container and the writer: bytes in order, a name only for what is whole."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from pysa_convert.container import GgufBytes, encode_key
from pysa_convert.tensors import ArrayTensor, interleave_halves, to_f32
from pysa_convert.writer import atomic_output, file_bytes, write_gguf

from pysa.errors import ConvertError, ModelFileError

KEYS = [
    encode_key("general.architecture", "string", "llama"),
    encode_key("a.u32", "u32", 7),
    encode_key("a.f32", "f32", 0.5),
    encode_key("a.bool", "bool", True),
    encode_key("a.words", "string[]", ["", "größe", "日本"]),
    encode_key("a.numbers", "i32[]", [-1, 0, 2**31 - 1]),
    encode_key("a.f64", "f64", 0.1),
]
TENSORS = [
    ArrayTensor("x", np.arange(15, dtype=np.float32).reshape(3, 5)),
    ArrayTensor("y", np.array([1.5], dtype=np.float32)),
]


def written(path: Path) -> Path:
    write_gguf(path, KEYS, TENSORS)
    return path


def test_gguf_reads_what_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    assert path.stat().st_size == file_bytes(KEYS, TENSORS)
    reader = gguf.GGUFReader(path)
    assert [reader.fields[f"a.{key}"].contents() for key in ("u32", "f32", "bool")] == [7, 0.5, True]
    assert reader.fields["a.words"].contents() == ["", "größe", "日本"]
    assert reader.fields["a.numbers"].contents() == [-1, 0, 2**31 - 1]
    assert reader.fields["a.f64"].contents() == 0.1
    assert [tensor.name for tensor in reader.tensors] == ["x", "y"]
    assert reader.tensors[0].data.tolist() == TENSORS[0].values.tolist()


def test_own_reader_reads_it_too(tmp_path: Path) -> None:
    source = GgufBytes(written(tmp_path / "m.gguf"))
    assert [key.raw for key in source.keys] == [key.raw for key in KEYS]
    assert source.values["a.words"] == ["", "größe", "日本"]
    assert source.tensors[0].shape == (5, 3)
    assert bytes(source.tensor_view(source.tensors[0])) == TENSORS[0].values.tobytes()


def test_every_cut_is_a_model_file_error(tmp_path: Path) -> None:
    data = written(tmp_path / "m.gguf").read_bytes()
    for n in range(0, len(data) - 32, 7):
        (tmp_path / "cut.gguf").write_bytes(data[:n])
        with pytest.raises(ModelFileError):
            GgufBytes(tmp_path / "cut.gguf")


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    data = written(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "flipped.gguf"
    n_refused = 0
    for at in range(0, 360, 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            GgufBytes(path)
        except ModelFileError:
            n_refused += 1
    assert n_refused > 40


def test_a_huge_count_is_refused_without_allocating(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    with pytest.raises(ModelFileError, match="counts at byte 24"):
        GgufBytes(path)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_output(path, True, 10) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ConvertError, match="exists; pass --force"), atomic_output(path, False, 1):
        pass
    with atomic_output(path, True, 1) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_no_room_is_found_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="not enough space"), atomic_output(tmp_path / "x", False, 2**60):
        pytest.fail("entered")


def test_a_tensor_that_yields_too_little_is_refused(tmp_path: Path) -> None:
    class Short(ArrayTensor):
        def chunks(self) -> list[bytes]:  # type: ignore[override]
            return [b"\0" * 4]

    with pytest.raises(ConvertError, match="x: expected 60 bytes of data, got 4"):
        write_gguf(tmp_path / "m.gguf", KEYS, [Short("x", TENSORS[0].values)])


def test_halves_become_pairs() -> None:
    rows = np.arange(12).reshape(12, 1)  # two heads of six
    assert interleave_halves(rows, 6).ravel().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_bf16_bits_become_f32() -> None:
    assert to_f32(np.array([[0x3F80, 0xC000]], dtype=np.uint16), "BF16").tolist() == [[1.0, -2.0]]
