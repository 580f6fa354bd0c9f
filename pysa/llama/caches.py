"""Where Llama.set_cache() keeps conversations by the tokens they begin with: in memory, or in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pysa._arguments import PathLike, check_int, check_path
from pysa.llama.state import LlamaState
from pysa.prefix import common_prefix

DEFAULT_CAPACITY_BYTES = 2 << 30


class BaseLlamaCache(ABC):
    """States by the tokens they hold. What a subclass keeps, Llama.set_cache() can use.

    Args:
        capacity_bytes: of all states together; the least recently used go first.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self.capacity_bytes = check_int("capacity_bytes", capacity_bytes, 0, 2**63 - 1)

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes of all states."""

    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The state that shares the longest prefix with `key`; KeyError if none does."""

    @abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool:
        """Whether a state shares a prefix with `key`."""

    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keeps a state."""


class LlamaRAMCache(BaseLlamaCache):
    """States in memory."""

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """Bytes of all states."""
        return sum(state.llama_state_size for state in self.cache_state.values())

    def _find(self, key: Sequence[int]) -> tuple[int, ...] | None:
        shared = {held: common_prefix(held, tuple(key)) for held in self.cache_state}
        best = max(shared, key=lambda held: shared[held], default=None)
        return best if best is not None and shared[best] > 0 else None

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = self._find(key)
        if found is None:
            raise KeyError("no state shares a prefix")
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, Sequence) and self._find(key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.cache_state.pop(tuple(key), None)
        self.cache_state[tuple(key)] = value
        while self.cache_state and self.cache_size > self.capacity_bytes:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache:
    """A folder of sessions: with it, Llama.set_cache() does what Llama(cache_dir=...) does, see pysa.prefix_cache.

    Args:
        cache_dir: made if it is missing.
        capacity_bytes: of all sessions together; the least recently used go first.
    """

    def __init__(
        self, cache_dir: PathLike = ".cache/llama_cache", capacity_bytes: int = DEFAULT_CAPACITY_BYTES
    ) -> None:
        self.cache_dir = check_path("cache_dir", cache_dir)
        self.capacity_bytes = check_int("capacity_bytes", capacity_bytes, 0, 2**63 - 1)

    @property
    def cache_size(self) -> int:
        """Bytes of all sessions."""
        folder = Path(self.cache_dir)
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
