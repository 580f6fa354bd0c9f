"""pysa: long-context generation with shared attention and a split KV cache.

    model = pysa.Model("m.gguf")
    session = model.session(n_ctx=8192)
    for token in session.generate(model.tokenize("Once upon a time")):
        print(model.detokenize([token]), end="")

What needs numpy or the engine is imported when it is first used, so that `import pysa` itself stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pysa.errors import (
    ArgumentError,
    ContextFullError,
    ConvertError,
    DeviceError,
    EvaluationCancelledError,
    ModelFileError,
    PlanError,
    PysaError,
    RollbackError,
    SessionBusyError,
    StateFileError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from pysa.batch import Batch
    from pysa.device import Device, devices
    from pysa.grammar import LlamaGrammar
    from pysa.llama.async_llama import AsyncLlama
    from pysa.llama.llama import Llama
    from pysa.memory import Fit, fit
    from pysa.model import Model
    from pysa.plan import Plan
    from pysa.prefix_cache import PrefixCache
    from pysa.sampling import SamplingParams
    from pysa.session import Session

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncLlama",
    "Batch",
    "ContextFullError",
    "ConvertError",
    "Device",
    "DeviceError",
    "EvaluationCancelledError",
    "Fit",
    "Llama",
    "LlamaGrammar",
    "Model",
    "ModelFileError",
    "Plan",
    "PlanError",
    "PrefixCache",
    "PysaError",
    "RollbackError",
    "SamplingParams",
    "Session",
    "SessionBusyError",
    "StateFileError",
    "UnsupportedModelError",
    "__version__",
    "devices",
    "fit",
]

_LAZY = {
    "AsyncLlama": "pysa.llama.async_llama",
    "Batch": "pysa.batch",
    "Device": "pysa.device",
    "Fit": "pysa.memory",
    "Llama": "pysa.llama.llama",
    "LlamaGrammar": "pysa.grammar",
    "Model": "pysa.model",
    "Plan": "pysa.plan",
    "PrefixCache": "pysa.prefix_cache",
    "SamplingParams": "pysa.sampling",
    "Session": "pysa.session",
    "devices": "pysa.device",
    "fit": "pysa.memory",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pysa' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ImportError as error:
        if "_native" not in str(error):
            raise
        raise ImportError(
            f"{__path__[0]}: the native module pysa._native is missing here; if this is the source tree, run from "
            "another folder, or build with -DPYSA_IN_TREE=ON"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
