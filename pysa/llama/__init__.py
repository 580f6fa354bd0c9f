"""The interface of llama-cpp-python: `import pysa.llama as llama_cpp`. docs/binding.md says what is the same.

install_as_llama_cpp() puts it where programs look for llama_cpp. AsyncLlama is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pysa.grammar import LlamaGrammar
from pysa.llama.arguments import (
    GGML_TYPE_BF16,
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_Q4_0,
    GGML_TYPE_Q8_0,
    LLAMA_ATTENTION_TYPE_CAUSAL,
    LLAMA_ATTENTION_TYPE_UNSPECIFIED,
    LLAMA_DEFAULT_SEED,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
    LLAMA_ROPE_SCALING_TYPE_LINEAR,
    LLAMA_ROPE_SCALING_TYPE_NONE,
    LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    LLAMA_ROPE_SCALING_TYPE_YARN,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
)
from pysa.llama.as_llama_cpp import install_as_llama_cpp
from pysa.llama.caches import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from pysa.llama.llama import Llama
from pysa.llama.offload import llama_supports_gpu_offload
from pysa.llama.request import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from pysa.llama.state import LlamaState
from pysa.llama.tokenizer import LlamaTokenizer
from pysa.llama.types import PromptTooLongError

if TYPE_CHECKING:
    from pysa.llama.async_llama import AsyncLlama

__version__ = "0.3.36"  # of the interface

__all__ = [
    "GGML_TYPE_BF16",
    "GGML_TYPE_F16",
    "GGML_TYPE_F32",
    "GGML_TYPE_Q4_0",
    "GGML_TYPE_Q8_0",
    "LLAMA_ATTENTION_TYPE_CAUSAL",
    "LLAMA_ATTENTION_TYPE_UNSPECIFIED",
    "LLAMA_DEFAULT_SEED",
    "LLAMA_POOLING_TYPE_CLS",
    "LLAMA_POOLING_TYPE_LAST",
    "LLAMA_POOLING_TYPE_MEAN",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "LLAMA_ROPE_SCALING_TYPE_LINEAR",
    "LLAMA_ROPE_SCALING_TYPE_NONE",
    "LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED",
    "LLAMA_ROPE_SCALING_TYPE_YARN",
    "LLAMA_SPLIT_MODE_LAYER",
    "LLAMA_SPLIT_MODE_NONE",
    "LLAMA_SPLIT_MODE_ROW",
    "AsyncLlama",
    "BaseLlamaCache",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "PromptTooLongError",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "__version__",
    "install_as_llama_cpp",
    "llama_supports_gpu_offload",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncLlama":
        raise AttributeError(f"module 'pysa.llama' has no attribute {name!r}")
    return importlib.import_module("pysa.llama.async_llama").AsyncLlama
