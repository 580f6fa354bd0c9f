"""One text held in memory and evaluated under many plans: how what a plan costs is measured. Not for generating.

A run begins at the first layer that a plan changes, which makes trying many plans quick; all rows of all heads are
kept for that, whatever the plan. native/src/planning/trial.cpp does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import CACHE_TYPES, CacheType, Tokens, check_bool, check_choice, check_int, check_tokens
from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import Plan

FloatArray = npt.NDArray[np.float32]


class Trial:
    """A text and the results of the last plan it was evaluated under. A context manager; one thread at a time.

    Memory: a dense cache of the text, twice, and n_layer * n_tokens * n_embd floats.

    Args:
        model: what evaluates it; every value is read (v_skip 0) and attention is `fused`.
        tokens: the text, (n_tokens,), at least two.
        n_queries: of the last tokens, whose queries are kept for queries(); 0..n_tokens.
        type_k: how keys are kept, as for Model.session.
        type_v: how values are kept.
        n_ubatch: most tokens evaluated at once, 1..65536.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range.
        DeviceError: not enough memory.
    """

    def __init__(
        self,
        model: Model,
        tokens: Tokens,
        *,
        n_queries: int = 0,
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
        n_ubatch: int = 512,
    ) -> None:
        self.model = model
        ids = check_tokens(tokens, model.n_vocab)
        self._trial: _native.Trial | None = _native.Trial(
            model.native,
            ids,
            check_choice("type_k", type_k, CACHE_TYPES),
            check_choice("type_v", type_v, CACHE_TYPES),
            check_int("n_ubatch", n_ubatch, 1, 65536),
            check_int("n_queries", n_queries, 0, len(ids)),
        )

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the memory go."""
        self._trial = None

    @property
    def native(self) -> _native.Trial:
        """The engine's own trial."""
        if self._trial is None:
            raise ArgumentError("trial: it is closed: expected an open trial; make another one")
        return self._trial

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return self.native.n_tokens

    @property
    def n_queries(self) -> int:
        """Of the last tokens, whose queries are kept."""
        return self.native.n_queries

    @property
    def kq_scale(self) -> float:
        """A score is kq_scale times the product of query and key."""
        return self.native.kq_scale

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""
        return self.native.size_bytes

    def run(self, plan: Plan, *, keep: bool = False) -> int:
        """Evaluates the text under a plan, from the first layer on that attends otherwise than in the plan kept last.

        Args:
            plan: any plan that fits the model.
            keep: later runs begin from this one.

        Returns:
            Layers evaluated: all of them if no plan was kept, 0 if this is the one.

        Raises:
            PlanError: the plan does not fit the model; every fault is named.
            DeviceError: not enough memory.
            KeyboardInterrupt: Ctrl-C; there are no results until the next run.
        """
        check_bool("keep", keep)
        return self.native.run(plan.to_json(), keep)

    def logits(self, positions: Sequence[int] | npt.NDArray[np.integer]) -> FloatArray:
        """Scores of the tokens after some positions.

        Args:
            positions: (n_positions,), each 0..n_tokens - 1.

        Returns:
            float32 (n_positions, n_vocab).

        Raises:
            ArgumentError: a position out of range, or no run was finished.
        """
        return self.native.logits(np.asarray(positions, dtype=np.int64))

    def queries(self, layer: int) -> FloatArray:
        """Queries of the last n_queries tokens as they meet the keys (after QK norm and RoPE), unscaled.

        Returns:
            float32 (n_queries, n_head, n_embd_head_k).
        """
        return self.native.queries(check_int("layer", layer, 0, self.model.n_layer - 1))

    def keys(self, layer: int) -> FloatArray:
        """Keys as the cache holds them, float32 (n_head_kv, n_tokens, n_embd_head_k)."""
        return self.native.keys(check_int("layer", layer, 0, self.model.n_layer - 1))

    def values(self, layer: int) -> FloatArray:
        """Values as the cache holds them, float32 (n_head_kv, n_tokens, n_embd_head_v)."""
        return self.native.values(check_int("layer", layer, 0, self.model.n_layer - 1))
