"""What pysa.Llama does with each argument of llama_cpp.Llama: one table, and the checks it takes.

An argument is used, has no effect on results here (named in a warning when it is not at its default), or would change
the result in a way pysa does not have (refused, unless it asks for what the model does anyway).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pysa._arguments import check_int
from pysa.errors import ArgumentError

GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_Q4_0 = 2
GGML_TYPE_Q8_0 = 8
GGML_TYPE_BF16 = 30
LLAMA_DEFAULT_SEED = 0xFFFFFFFF
LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
LLAMA_POOLING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN, LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST = 0, 1, 2, 3
LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED = -1
LLAMA_ROPE_SCALING_TYPE_NONE, LLAMA_ROPE_SCALING_TYPE_LINEAR, LLAMA_ROPE_SCALING_TYPE_YARN = 0, 1, 2
LLAMA_ATTENTION_TYPE_UNSPECIFIED, LLAMA_ATTENTION_TYPE_CAUSAL = -1, 0

CACHE_TYPES = {
    GGML_TYPE_F32: "f32",
    GGML_TYPE_F16: "f16",
    GGML_TYPE_BF16: "bf16",
    GGML_TYPE_Q8_0: "q8_0",
    GGML_TYPE_Q4_0: "q4_0",
}
_ROPE_SCALING = {None: 0, "none": 0, "linear": 1, "yarn": 2}


@dataclass(frozen=True)
class Argument:
    """What becomes of an argument.

    Args:
        kind: `used`; `idle`: the result does not depend on it; `refused`: it would, and pysa cannot.
        default: as llama_cpp.Llama has it.
        why: for the warning or the error.
        also: further values of an idle one that ask for what is done anyway.
    """

    kind: Literal["used", "idle", "refused"]
    default: Any = None
    why: str = ""
    also: tuple[Any, ...] = ()


ARGUMENTS: dict[str, Argument] = {
    "n_gpu_layers": Argument("used", 0),
    "split_mode": Argument("idle", LLAMA_SPLIT_MODE_LAYER, "one GPU is used", also=(LLAMA_SPLIT_MODE_NONE,)),
    "main_gpu": Argument("used", 0),
    "tensor_split": Argument("idle", None, "one GPU is used"),
    "vocab_only": Argument("used", False),
    "use_mmap": Argument("used", True),
    "use_mlock": Argument("idle", False, "weights may be paged out"),
    "kv_overrides": Argument("refused", None, "the file's own metadata is what counts"),
    "seed": Argument("used", LLAMA_DEFAULT_SEED),
    "n_ctx": Argument("used", 512),
    "n_batch": Argument("used", 512),
    "n_ubatch": Argument("used", 512),
    "n_threads": Argument("used"),
    "n_threads_batch": Argument("idle", None, "n_threads counts for prompts too"),
    "rope_scaling_type": Argument("refused", LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED),
    "pooling_type": Argument("used", LLAMA_POOLING_TYPE_UNSPECIFIED),
    "attention_type": Argument("refused", LLAMA_ATTENTION_TYPE_UNSPECIFIED, "attention is causal"),
    "rope_freq_base": Argument("refused", 0.0),
    "rope_freq_scale": Argument("refused", 0.0),
    "yarn_ext_factor": Argument("refused", -1.0),
    "yarn_attn_factor": Argument("refused", 1.0),
    "yarn_beta_fast": Argument("refused", 32.0),
    "yarn_beta_slow": Argument("refused", 1.0),
    "yarn_orig_ctx": Argument("refused", 0),
    "logits_all": Argument("used", False),
    "embedding": Argument("used", False),
    "offload_kqv": Argument("used", True),
    "flash_attn": Argument("idle", False, "attention= chooses"),
    "op_offload": Argument("idle"),
    "swa_full": Argument("idle"),
    "no_perf": Argument("idle", False),
    "last_n_tokens_size": Argument("used", 64),
    "lora_base": Argument("idle"),
    "lora_scale": Argument("idle", 1.0),
    "lora_path": Argument("refused", None, "merge the adapter into the model first"),
    "numa": Argument("idle", False),
    "chat_format": Argument("used"),
    "chat_handler": Argument("used"),
    "draft_model": Argument("refused", None, "there is no speculative decoding"),
    "tokenizer": Argument("refused", None, "the file's own tokenizer is what counts"),
    "type_k": Argument("used"),
    "type_v": Argument("used"),
    "spm_infill": Argument("used", False),
    "verbose": Argument("used", True),
}


def own_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The values of refused arguments that ask for what the model does anyway."""
    arch = metadata.get("general.architecture", "")
    factor = metadata.get(f"{arch}.rope.scaling.factor") or 1.0
    return {
        "rope_freq_base": metadata.get(f"{arch}.rope.freq_base", 10000.0),
        "rope_freq_scale": 1.0 / factor,
        "rope_scaling_type": _ROPE_SCALING.get(metadata.get(f"{arch}.rope.scaling.type")),
        "attention_type": LLAMA_ATTENTION_TYPE_CAUSAL,
        "yarn_orig_ctx": metadata.get(
            f"{arch}.rope.scaling.original_context_length", metadata.get(f"{arch}.context_length")
        ),
    }


def warn_of_idle(given: Mapping[str, Any], unknown: Mapping[str, Any], no_gpu: str, stacklevel: int) -> None:
    """One warning for all arguments that have no effect here and all that nobody knows.

    Args:
        given: the constructor's arguments.
        unknown: those that it does not have.
        no_gpu: why no GPU is used though layers were asked for; empty if one is, or none were.
        stacklevel: as for warnings.warn.
    """
    idle = []
    if no_gpu:
        idle.append(f"n_gpu_layers={given['n_gpu_layers']!r} ({no_gpu})")
    for name, value in given.items():
        known = ARGUMENTS.get(name)
        if known is None or known.kind != "idle" or value is None or value in (known.default, *known.also):
            continue
        if name == "n_threads_batch" and value == given.get("n_threads"):
            continue
        idle.append(f"{name}={value!r}" + (f" ({known.why})" if known.why else ""))
    parts = [f"without effect here: {', '.join(idle)}"] if idle else []
    parts += [f"unknown: {', '.join(sorted(unknown))}"] if unknown else []
    if parts:
        warnings.warn(f"pysa.Llama: arguments {'; '.join(parts)}", stacklevel=stacklevel + 1)


def check_refused(given: Mapping[str, Any], metadata: Mapping[str, Any], where: str) -> None:
    """Refuses what would change the result and is not supported; all faults at once.

    Raises:
        ArgumentError: naming each argument, what the model does, and what to do.
    """
    own, faults = own_values(metadata), []
    for name, value in given.items():
        known = ARGUMENTS.get(name)
        if known is None or known.kind != "refused" or value is None or value == known.default:
            continue
        if name in own:
            if _same(value, own[name]):
                continue
            faults.append(f"{name}: expected the model's own {own[name]} or {known.default}, got {value!r}")
        else:
            why = f"; {known.why}" if known.why else ""
            faults.append(f"{name}: not supported: expected {known.default!r}, got {value!r}{why}")
    if faults:
        raise ArgumentError(f"{where}: " + "; ".join(faults) + "; leave out what is not supported")


def _same(value: Any, own: Any) -> bool:
    try:
        return bool(abs(value - own) <= 1e-6 * abs(own))  # the file has float32
    except TypeError:
        return False


def cache_type(name: str, value: Any) -> str:
    """The name of a cache type, from ggml's number, a name, or None for f16.

    Raises:
        ArgumentError: another type.
    """
    if value is None:
        return "f16"
    if isinstance(value, str) and value in CACHE_TYPES.values():
        return value
    if not isinstance(value, bool | str) and value in CACHE_TYPES:
        return CACHE_TYPES[value]
    expected = ", ".join(f"{kind} ({number})" for number, kind in CACHE_TYPES.items())
    raise ArgumentError(f"{name}: not a type of the cache: expected {expected}, got {value!r}")


def thread_count(n_threads: int | None) -> int:
    """Threads of an evaluation; 0, the physical cores, for None."""
    return 0 if n_threads is None else check_int("n_threads", n_threads, 0, 512)


def first_seed(seed: Any) -> int:
    """The seed the seeds of completions come from, as llama-cpp-python draws them; -1 draws one itself."""
    value = check_int("seed", seed, -(2**63), 2**63)
    return int.from_bytes(os.urandom(4), "little") if value == -1 else value or LLAMA_DEFAULT_SEED
