"""Writes a GGUF of a known model's shape with random weights, so that speed can be measured without a download.

    python bench/make_model.py llama-3.2-1b -o 1b.gguf
    python bench/make_model.py --shape qwen3-0.6b -o 0.6b.gguf

Matrices are q4_0 (random blocks), the embedding too; the vocabulary is a byte-level one filled up with unused tokens.
What it generates is noise; its speed and its memory are those of the shape.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-like model; `qk_norm`: queries and keys are normalised per head."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_embd_head: int
    n_ff: int
    n_vocab: int
    n_ctx: int
    tied: bool
    arch: str = "llama"
    qk_norm: bool = False
    rope_base: float = 500000.0
    eps: float = 1e-5


SHAPES = {
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 131072, True),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 131072, False),
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151936, 40960, True, "qwen3", True, 1e6, 1e-6),
    "tiny": Shape(4, 256, 8, 2, 32, 512, 512, 32768, True),
}


def q4_0(rng: np.random.Generator, n_rows: int, n_columns: int, gain: float = 1.0) -> np.ndarray:
    """Random q4_0 rows, uint8 (n_rows, n_columns / 32 * 18), of standard deviation gain * n_columns**-0.5."""
    # Nibbles 1..15 stand for -7..7: a mean that is not 0 would add up from layer to layer, until all keys look alike.
    low, high = rng.integers(1, 16, (2, n_rows, n_columns // 32, 18), dtype=np.uint8)
    blocks = low | high << 4
    scale = np.float16(gain / (4.32 * n_columns**0.5))  # their standard deviation
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(n_rows, -1)


def byte_tokens() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write(path: Path, shape: Shape, seed: int, sharpness: float = 1.0) -> None:
    """Writes the file; attention scores have a standard deviation of about `sharpness`."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, shape.arch)
    writer.add_name(path.stem)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.n_embd_head)
    writer.add_value_length(shape.n_embd_head)
    writer.add_rope_dimension_count(shape.n_embd_head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_file_type(2)
    writer.add_quantization_version(2)
    tokens = byte_tokens()
    n_unused = shape.n_vocab - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in range(n_unused))])
    writer.add_token_types([int(TokenType.NORMAL)] * 256 + [int(TokenType.UNUSED)] * n_unused)
    writer.add_token_merges([f"{tokens[104]} {tokens[101]}"])
    writer.add_eos_token_id(shape.n_vocab - 1)

    def matrix(name: str, n_rows: int, n_columns: int, gain: float = 1.0) -> None:
        writer.add_tensor(name, q4_0(rng, n_rows, n_columns, gain), raw_dtype=GGMLQuantizationType.Q4_0)

    def norm(name: str, n: int = shape.n_embd) -> None:
        writer.add_tensor(name, np.ones(n, np.float32))

    matrix("token_embd.weight", shape.n_vocab, shape.n_embd)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", shape.n_vocab, shape.n_embd)
    n_q, n_kv = shape.n_head * shape.n_embd_head, shape.n_head_kv * shape.n_embd_head
    for il in range(shape.n_layer):
        norm(f"blk.{il}.attn_norm.weight")
        norm(f"blk.{il}.ffn_norm.weight")
        if shape.qk_norm:
            norm(f"blk.{il}.attn_q_norm.weight", shape.n_embd_head)
            norm(f"blk.{il}.attn_k_norm.weight", shape.n_embd_head)
        matrix(f"blk.{il}.attn_q.weight", n_q, shape.n_embd, sharpness)
        matrix(f"blk.{il}.attn_k.weight", n_kv, shape.n_embd)
        matrix(f"blk.{il}.attn_v.weight", n_kv, shape.n_embd)
        matrix(f"blk.{il}.attn_output.weight", shape.n_embd, n_q)
        matrix(f"blk.{il}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{il}.ffn_up.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{il}.ffn_down.weight", shape.n_embd, shape.n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("shape", nargs="?", choices=SHAPES)
    which.add_argument("--shape", dest="shape_option", choices=SHAPES, help="the same, as an option")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sharpness", type=float, default=1.0, help="of the attention, where there is no QK norm (1)")
    args = parser.parse_args()
    write(args.output, SHAPES[args.shape or args.shape_option], args.seed, args.sharpness)


if __name__ == "__main__":
    main()
