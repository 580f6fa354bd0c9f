"""Writes the finished checkpoint folder and proves that transformers reads it as it was meant."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from .model import TinyLlama, export, load
from .vocabulary import BOS, IM_END, IM_START, write_tokenizer

SAMPLE = "def f(x):\n    return [Ünïcode, 1234, '你好', \"😀\"]  # naïve\n\n\tprint(x)"


def check(folder: Path) -> float:
    """Compares logits and token ids with transformers'.

    Returns:
        The greatest difference of the logits, as a share of their range.

    Raises:
        ValueError: if the two disagree.
    """
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = load(folder)
    ids = tokenizer(SAMPLE, return_tensors="pt").input_ids
    if ids[0].tolist() != Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SAMPLE).ids or ids[0, 0] != BOS:
        raise ValueError(f"{folder}: AutoTokenizer and tokenizer.json differ: {ids[0].tolist()}")
    if tokenizer.decode(ids[0, 1:]) != SAMPLE:
        raise ValueError(f"{folder}: decoding does not give the text back: {tokenizer.decode(ids[0, 1:])!r}")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    if chat[:2] != [BOS, IM_START] or IM_END not in chat or chat.count(BOS) != 1:
        raise ValueError(f"{folder}: unexpected chat template output: {chat}")
    long_ids = torch.randint(0, ours.config.n_vocab, (1, 1500), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pairs = [(theirs(i).logits, ours(i)) for i in (ids, long_ids)]
    difference = max(((a - b).abs().max() / (a.max() - a.min())).item() for a, b in pairs)
    if difference > 1e-3:
        raise ValueError(f"{folder}: logits differ from transformers': expected at most 1e-3, got {difference}")
    return difference


def publish(model: TinyLlama, tokenizer: Tokenizer, folder: Path) -> float:
    """Writes the files aside, checks them, and renames each into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as aside:
        export(model, Path(aside))
        write_tokenizer(tokenizer, Path(aside), model.config.n_ctx)
        difference = check(Path(aside))
        for path in sorted(Path(aside).iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)
    return difference
