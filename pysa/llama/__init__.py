"""The familiar interface: `import pysa.llama as llama_cpp` in place of llama-cpp-python."""

from __future__ import annotations

from pysa.grammar import LlamaGrammar
from pysa.llama.request import LogitsProcessorList, StoppingCriteriaList

__all__ = ["LlamaGrammar", "LogitsProcessorList", "StoppingCriteriaList"]
