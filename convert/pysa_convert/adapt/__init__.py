"""pysa-adapt: trains a checkpoint with a plan's shared attention in place, so that the quality it costs comes back.

Needs the extra `adapt` (torch, transformers, peft for LoRA); importing this package or its cli does not import torch.
"""

from __future__ import annotations
