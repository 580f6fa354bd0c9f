"""Puts pysa.llama where programs look for llama-cpp-python, so that they need no change: the modules `llama_cpp.*`."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import ModuleSpec

from pysa.errors import PysaError

# llama_cpp's modules, and where their contents are here.
_TYPES = ("pysa.llama.types", "pysa.llama.chat_types")
_MODULES = {
    "llama": ("pysa.llama", *_TYPES),
    "llama_cache": ("pysa.llama.caches",),
    "llama_chat_format": ("pysa.llama.chat_handler",),
    "llama_cpp": ("pysa.llama.arguments", "pysa.llama.offload"),
    "llama_grammar": ("pysa.grammar",),
    "llama_tokenizer": ("pysa.llama.tokenizer",),
    "llama_types": _TYPES,
}


def install_as_llama_cpp() -> types.ModuleType:
    """Makes `import llama_cpp` give pysa.llama, in this process and from now on.

    LangChain's, LlamaIndex's and other adapters then run on pysa. Call it before anything imports llama_cpp; a second
    call does nothing.

    Returns:
        The module `llama_cpp`.

    Raises:
        PysaError: llama-cpp-python itself is imported already.
    """
    found = sys.modules.get("llama_cpp")
    if isinstance(found, _Standin):
        return found
    if found is not None or any(name.startswith("llama_cpp.") for name in sys.modules):
        raise PysaError(
            f"llama_cpp: it is imported already, from {getattr(found, '__file__', None)}: expected that nothing has "
            "imported it; call install_as_llama_cpp() first"
        )
    package = _Standin("llama_cpp", _MODULES["llama"])
    package.__path__ = []
    for name, sources in _MODULES.items():
        module = _Standin(f"llama_cpp.{name}", sources)
        sys.modules[module.__name__] = package.__dict__[name] = module
    sys.modules["llama_cpp"] = package
    return package


class _Standin(types.ModuleType):
    """A module whose contents are other modules'."""

    def __init__(self, name: str, sources: tuple[str, ...]) -> None:
        super().__init__(name, f"{name}, as pysa has it.")
        self.__spec__ = ModuleSpec(name, None, origin="pysa", is_package=name == "llama_cpp")
        self.__package__ = "llama_cpp"
        self._sources = [importlib.import_module(source) for source in sources]
        self.__all__ = sorted({name for source in self._sources for name in _public(source)})

    def __getattr__(self, name: str) -> object:
        for source in self.__dict__.get("_sources", ()):
            if hasattr(source, name):
                return getattr(source, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}: pysa does not have it")

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


def _public(module: types.ModuleType) -> list[str]:
    """A module's own names, without what it imports."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))
