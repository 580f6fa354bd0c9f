"""pysa-convert: a Hugging Face checkpoint or a GGUF goes in, a GGUF with a sharing plan comes out."""

from __future__ import annotations
