"""A hub id becomes a checkpoint folder: only the files a conversion reads are fetched."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pysa.errors import ConvertError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = ["model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"]
FILES += ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"]
FILES += ["chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"]


def is_hub_id(model: str) -> bool:
    """Whether MODEL reads as `organisation/name`."""
    return HUB_ID.fullmatch(model) is not None


def fetch(model: str, quiet: bool) -> Path:
    """The folder of the model's files in huggingface_hub's own cache.

    Raises:
        ConvertError: huggingface_hub is not installed, the hub cannot be reached, or it does not have the model.
    """
    try:
        if quiet:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
        import huggingface_hub  # noqa: PLC0415
    except ImportError as error:
        raise ConvertError(f"{model}: a hub id needs huggingface_hub: pip install 'pysa[hf]'") from error
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=FILES))
    # its exceptions come from several libraries and differ between versions
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = "give a folder instead, or check the name and the network"
        raise ConvertError(f"{model}: cannot be fetched from the hub: {reason.rstrip('.')}; {advice}") from error
