"""The vocabulary: a checkpoint's tokenizer as `tokenizer.*` keys, and the tokenizer to prove them against."""

from __future__ import annotations
