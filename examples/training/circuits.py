"""Plants the attention circuit that looks up pairs, so that training refines it instead of having to find it.

Recall of random pairs appears late and suddenly when it has to be discovered: a head must learn to copy the previous
token's content forward before another can profit from matching it. Here one KV group of the first layer is set to look
one and two tokens back, and two groups of a later layer to match those contents and to copy what follows a match:

    match 1:  content(t)   against content(j-1)     "find river stone;  find river" -> stone
    match 2:  content(t-1) against content(j-2)     "set river = stone  get river =" -> stone

Both matches use the slow RoPE dimensions only, which hardly turn over the whole context.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Attention, Config, TinyLlama, rope_table

CONSTANT_DIM = 0  # holds one value for every token; in tied logits it cancels out
CONSTANT_SIZE = 8.0  # in standard deviations of the other dimensions
READERS = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))
LOOK_BACK_LAYER, MATCH_LAYER = 0, 1
N_FAST = 4  # RoPE frequencies that tell neighbours apart
LOOK_BACK_SHARPNESS = 10.0
MATCH_SHARPNESS = 8.0
LOOK_BACK_GAIN = 1.0  # written by the heads that look back, relative to the residual's norm
COPY_GAIN = 4.0


def slow_dims(config: Config, max_turn: float = 4.0) -> Tensor:
    """Indices of the head dimensions that turn by less than `max_turn` radians over the context."""
    half = config.head_dim // 2
    speed = config.rope_theta ** (-torch.arange(half) / half)
    slow = torch.nonzero(speed * config.n_ctx < max_turn)[:, 0]
    return torch.cat((slow, slow + half))


def orthonormal(n_rows: int, n_columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows that ignore the constant dimension."""
    q, _ = torch.linalg.qr(torch.randn(n_columns - 1, n_rows, generator=generator))
    return torch.cat((torch.zeros(n_rows, 1), q.T), dim=1)


def rows(config: Config, index: int) -> slice:
    """The rows of head or group `index` in a projection."""
    return slice(index * config.head_dim, (index + 1) * config.head_dim)


@torch.no_grad()
def normalised_input(model: TinyLlama, ids: Tensor, layer: int) -> tuple[Tensor, float]:
    """What the layer's projections read (n_tokens, n_embd), and the mean norm of the residual there."""
    x = model.embed_tokens(ids)
    for block in model.layers[:layer]:
        x = block(x, model.cos[: ids.shape[1]], model.sin[: ids.shape[1]])
    return model.layers[layer].input_layernorm(x).flatten(0, 1), x.norm(dim=-1).mean().item()


def standardised(projection: Tensor, x: Tensor) -> Tensor:
    """The projection scaled to unit variance on x, its mean removed by way of the constant dimension."""
    read = x @ projection.T
    projection = projection / read.std(0).mean()
    projection[:, CONSTANT_DIM] = -(x @ projection.T).mean(0) / x[:, CONSTANT_DIM].mean()
    return projection


@torch.no_grad()
def plant_recall(model: TinyLlama, ids: Tensor, seed: int = 0) -> None:
    """Overwrites one KV group of the first layer and two of a later one.

    Args:
        model: fresh from its random initialisation.
        ids: (n_rows, n_tokens), typical input; fixes the scales.
        seed: of the random subspaces.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    embedding = model.embed_tokens.weight
    embedding[:, CONSTANT_DIM] = CONSTANT_SIZE * embedding[:, 1:].std()
    for name, weight in model.layers.named_parameters():
        if name.endswith(READERS):
            weight[:, CONSTANT_DIM] = 0
    model.norm.weight[CONSTANT_DIM] = 0
    subspaces = orthonormal(4 * config.head_dim, config.n_embd, generator)
    read, back_1, back_2, copied = subspaces.split(config.head_dim)
    _plant_look_back(model, ids, read, (back_1, back_2))

    attention: Attention = model.layers[MATCH_LAYER].self_attn
    x, size = normalised_input(model, ids, MATCH_LAYER)
    slow = slow_dims(config)
    for group, (query_from, key_from) in enumerate(((read, back_1), (back_1, back_2))):
        key, query = (torch.zeros(config.head_dim, config.n_embd) for _ in range(2))
        key[slow] = standardised(key_from[: len(slow)], x)
        query[slow] = standardised(query_from[: len(slow)], x) * MATCH_SHARPNESS
        attention.k_proj.weight[rows(config, group)] = key
        attention.v_proj.weight[rows(config, group)] = copied / (x @ copied.T).norm(dim=-1).mean()
        for head in (2 * group, 2 * group + 1):
            attention.q_proj.weight[rows(config, head)] = query
            attention.o_proj.weight[:, rows(config, head)] = copied.T * (COPY_GAIN * size / 2)


def _plant_look_back(model: TinyLlama, ids: Tensor, read: Tensor, written: tuple[Tensor, Tensor]) -> None:
    """Heads 0 and 1 of the first layer attend to the token one and two places back and copy its content."""
    config = model.config
    attention: Attention = model.layers[LOOK_BACK_LAYER].self_attn
    x, size = normalised_input(model, ids, LOOK_BACK_LAYER)
    amplitude = LOOK_BACK_SHARPNESS / x[:, CONSTANT_DIM].mean()
    half = config.head_dim // 2
    cos, sin = (table[:, :N_FAST] for table in rope_table(config))
    attention.k_proj.weight[rows(config, 0)] = 0
    attention.k_proj.weight[:N_FAST, CONSTANT_DIM] = amplitude
    attention.v_proj.weight[rows(config, 0)] = read / (x @ read.T).norm(dim=-1).mean()
    for head, subspace in enumerate(written):
        back = head + 1
        query = torch.zeros(config.head_dim, config.n_embd)
        query[:N_FAST, CONSTANT_DIM] = amplitude * cos[back]
        query[half : half + N_FAST, CONSTANT_DIM] = -amplitude * sin[back]
        attention.q_proj.weight[rows(config, head)] = query
        attention.o_proj.weight[:, rows(config, head)] = subspace.T * (LOOK_BACK_GAIN * size)
