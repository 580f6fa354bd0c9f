"""A tiny model that says what a test wants it to: each token has one successor, or some that are equally likely.

Attention and feed-forward are there, and add nothing: what comes next depends on the last token alone. The files are
complete, so caches, plans and checkpoints are real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from helpers.tiny_gguf import bpe_vocab, write_tiny_gguf

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START, END = "\n", "<|im_end|>"  # what the prompt ends with, and what ends an answer
N_EMBD = 320  # more than tokens, so that each has a direction of its own


def write_talking_gguf(
    path: str | Path,
    says: Mapping[str, str | Sequence[str]],
    *,
    template: str | None = CHATML,
    n_ctx: int = 2048,
    plan: Mapping[str, Any] | None = None,
    extra_kv: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model that talks.

    Args:
        path: the file to write.
        says: what follows a token, by their texts; START and END are two of them. Texts that are no token of the
            byte-level vocabulary become tokens of their own.
        template: the chat template; None for none.
        n_ctx: the context it claims to be trained for.
        plan: a plan.json dict for 2 layers of 6 heads.
        extra_kv: as write_tiny_gguf() has it.
    """
    keys = bpe_vocab()
    tokens: list[str] = keys["tokenizer.ggml.tokens"]
    ids = {text: i for i, text in enumerate(tokens)}
    alphabet = dict(zip(range(256), tokens[:256], strict=True))
    for text in [one for key, value in says.items() for one in (key, *([value] if isinstance(value, str) else value))]:
        spelled = text if text in ids else "".join(alphabet[byte] for byte in text.encode())
        if spelled not in ids:
            ids[spelled] = len(tokens)
            tokens.append(spelled)
            keys["tokenizer.ggml.token_type"].append(int(TokenType.NORMAL))
        ids[text] = ids[spelled]
    extra = {**keys, "tokenizer.chat_template": template, **(extra_kv or {})}
    write_tiny_gguf(path, n_embd=N_EMBD, n_layer=2, n_ctx=n_ctx, n_vocab=len(tokens), plan=plan, extra_kv=extra)

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path, "r+").tensors}
    for name, data in tensors.items():
        if "attn_output" in name or "ffn_down" in name:
            data[:] = 0
    tensors["output_norm.weight"][:] = 1
    embedding = np.eye(len(tokens), N_EMBD, dtype=np.float32)
    tensors["token_embd.weight"][:] = embedding
    output = np.zeros_like(embedding)
    for text, nexts in says.items():
        for following in [nexts] if isinstance(nexts, str) else nexts:
            output[ids[following]] += embedding[ids[text]]
    output[ids[END]] += 0.5 * embedding.sum(axis=0)  # whatever has no successor ends the answer
    tensors["output.weight"][:] = output
    for data in tensors.values():
        data.flush() if isinstance(data, np.memmap) else None
    return Path(path)
