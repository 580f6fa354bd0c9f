"""The table of architectures: one row each, by GGUF name and by Hugging Face class."""

from __future__ import annotations

from pysa_convert.architectures import llama, qwen2, qwen3
from pysa_convert.architectures.base import Architecture

ROWS = (llama.ROW, qwen2.ROW, qwen3.ROW)
SUPPORTED: dict[str, Architecture] = {row.name: row for row in ROWS}
BY_CLASS: dict[str, Architecture] = {name: row for row in ROWS for name in row.classes}
