"""Where a model comes from: a checkpoint folder, a hub id that becomes one, or a GGUF."""

from __future__ import annotations
