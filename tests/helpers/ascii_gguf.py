"""Makes a tiny model that says ASCII only. llama-cpp-python goes beyond max_tokens in the middle of a character."""

from __future__ import annotations

from pathlib import Path

import gguf


def speak_ascii(path: Path) -> Path:
    """Zeroes the rows of the output matrix that belong to bytes from 0x80 on; the file is changed in place."""
    reader = gguf.GGUFReader(path, "r+")
    is_spm = reader.get_field("tokenizer.ggml.model").contents() == "llama"
    # SentencePiece has three special tokens before the bytes, byte-level BPE begins with them.
    first = 3 + 128 if is_spm else 128
    (weight,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    weight.data[first : first + 128] = 0
    weight.data.flush()
    return path
