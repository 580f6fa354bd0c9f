"""`pysa.Session`: one conversation with its split cache. A thin, checked wrapper of the native session.

What the native session refuses to roll back, this one can evaluate again, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import (
    LOGITS_MODES,
    LogitsMode,
    PathLike,
    Tokens,
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_path,
    check_tokens,
)
from pysa.errors import ArgumentError
from pysa.plan import Plan

if TYPE_CHECKING:
    from pysa.model import Model

log = logging.getLogger("pysa")


def return_position(native: _native.Session, n: int) -> int:
    """Where a session goes back to for position `n`: there, to a checkpoint before it, or to 0.

    The sinks are always held, but from 0 the ubatches are those of a fresh session, bit for bit.
    """
    start = native.rollback_position(n)
    return 0 if start < n and start <= native.plan["n_sink"] else start


class Session:
    """One conversation: its cache and its position. Made by Model.session() or Model.load_session(). A context manager.

    Positions count from 0 and have no gaps. One thread at a time: a second one gets SessionBusyError. A failed or
    interrupted evaluation leaves the session as it was.
    """

    def __init__(self, model: Model, native: _native.Session, kv_offload: bool = True) -> None:
        self._model = model
        self._kv_offload = kv_offload
        self._session: _native.Session | None = native
        self._n_vocab = model.n_vocab
        self._vocab = model.native.vocab

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"{self.n_past} of {self.n_ctx} tokens"
        return f"<pysa.Session of {self._model.path!r}: {state}>"

    @property
    def native(self) -> _native.Session:
        """The engine's own session; for pysa's own modules."""
        if self._session is None:
            raise ArgumentError("session: it is closed: expected an open session; start another with Model.session()")
        return self._session

    @property
    def model(self) -> Model:
        """The model it belongs to."""
        return self._model

    @property
    def n_past(self) -> int:
        """Tokens evaluated and held."""
        return self.native.n_past

    @property
    def n_ctx(self) -> int:
        """Most tokens it can hold."""
        return self.native.n_ctx

    @property
    def n_ubatch(self) -> int:
        """Most tokens of a prompt evaluated at once."""
        return self.native.n_ubatch

    @property
    def v_skip(self) -> float:
        """Largest share of a head's distant weights whose values need not be read; 0: exact."""
        return self.native.v_skip

    @property
    def attention(self) -> str:
        """`fused` or `composed`: what `auto` came to."""
        return self.native.attention

    @property
    def kernel(self) -> str:
        """What computes the attention: `avx512`, `avx2`, `neon` or `scalar`, which PYSA_CPU can force; `cuda`, `ggml`.

        Two joined by + where layers differ, the GPU's first.
        """
        return self.native.kernel

    @property
    def kv_offload(self) -> bool:
        """Whether the cache of layers on the GPU was to be there too; first_gpu_layer tells what came of it."""
        return self._kv_offload

    @property
    def first_gpu_layer(self) -> int:
        """The layer from which on attention and cache are on the GPU; the model's n_layer if none are.

        It may come after the first layer of the weights there: layers that share scores stay on one side.
        """
        return self.native.first_gpu_layer

    @property
    def n_splits(self) -> int:
        """Parts of the last step between which CPU and GPU took turns."""
        return self.native.n_splits

    @property
    def plan(self) -> Plan:
        """The plan it runs; owners only if it runs dense."""
        return Plan.from_json(self.native.plan)

    @property
    def tokens(self) -> list[int]:
        """The tokens evaluated and held, oldest first."""
        return self.native.tokens

    def eval(self, tokens: Tokens, logits: LogitsMode = "last") -> npt.NDArray[np.float32]:
        """Evaluates tokens at positions n_past, n_past + 1, ...

        Args:
            tokens: ids, (n_tokens,), a list or an array of any integer type; at least one.
            logits: which rows are wanted: `last`, `all` or `none`.

        Returns:
            float32 (n_out, n_vocab), with n_out 1, n_tokens or 0: a row scores the token after its own.

        Raises:
            ArgumentError: floats, bools, no tokens, or an id out of range.
            ContextFullError: they do not fit in n_ctx.
            DeviceError: not enough memory.
            SessionBusyError: another thread is in this session.
            KeyboardInterrupt: Ctrl-C; nothing was evaluated.
        """
        ids = check_tokens(tokens, self._n_vocab)
        return self.native.eval(ids, check_choice("logits", logits, LOGITS_MODES))

    def truncate(self, n: int, reevaluate: bool = False) -> int:
        """Forgets everything from position `n` on.

        Exact or refused: a window holds a limited number of positions, so a session with a sharing plan can go back
        within its slack, or to a checkpoint, without work; anything else takes evaluating tokens again.

        Args:
            n: tokens to keep, 0..n_past.
            reevaluate: where the window has forgotten, go back to the nearest position that it has not, evaluate the
                tokens from there to `n` again, and tell the logger `pysa`. If that is interrupted, n_past says how far
                back it went.

        Returns:
            Tokens evaluated again; 0 if none had to be.

        Raises:
            RollbackError: the window has forgotten and `reevaluate` is False; the session is as it was.
            ArgumentError: `n` is no integer or not in 0..n_past.
        """
        native = self.native
        n = check_int("n", n, 0, native.n_past)
        start = return_position(native, n)
        if start == n or not check_bool("reevaluate", reevaluate):
            native.truncate(n)
            return 0
        again = self.tokens[start:n]
        native.truncate(start)
        log.warning("truncate(%d): the window has forgotten it; evaluating %d tokens again", n, len(again))
        self.eval(again, logits="none")
        return len(again)

    def checkpoint(self) -> int:
        """Lets truncate() return to this position without work.

        Nothing is copied now: window rows that are overwritten later are kept as long as a checkpoint needs them. The
        oldest checkpoints go when there are more than 32, or when those rows take more than four windows.

        Returns:
            The position, n_past.
        """
        return self.native.checkpoint()

    def memory(self) -> dict[str, int]:
        """Bytes really allocated, by part.

        Returns:
            `keys` and `values` (all rows), `window_keys` and `window_values`, their `total`, and `dense`, what n_rows
            tokens would take without sharing; `device`, how much of the total is on the GPU; `checkpoints`,
            `attention` and `compute`, which are not the cache's; and the counts `n_past`, `n_rows` (tokens there is
            room for now) and `n_window_rows`.
        """
        return self.native.memory()

    def skip_report(self) -> dict[str, float]:
        """What leaving out negligible values came to since the session began or was reset.

        Returns:
            `n_values`: rows of distant values in reach, over steps, layers and KV heads; `n_values_read`: of which were
            read; `dropped_mass_max` and `dropped_mass_mean`: the share of a head's distant weights that was left out
            in a step, the largest, at most v_skip, and the mean. Zeros where nothing may be left out.
        """
        return self.native.skip_report()

    def save(self, path: PathLike, force: bool = False) -> None:
        """Writes the conversation's state to a file that Model.load_session() continues from, bit for bit.

        Args:
            path: written beside its name, then renamed.
            force: replace an existing file.

        Raises:
            ArgumentError: the file exists and `force` is False.
            StateFileError: it cannot be written.
        """
        self.native.save(check_path("path", path), check_bool("force", force))

    def reset(self) -> None:
        """Forgets everything, checkpoints too."""
        self.native.reset()

    def close(self) -> None:
        """Lets the cache go."""
        self._session = None

    def generate(
        self,
        tokens: Tokens,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stop_at_eog: bool = True,
    ) -> Iterator[int]:
        """Evaluates a prompt, then samples and evaluates one token after another.

        A token is evaluated when the next one is asked for, so n_past counts what has been evaluated: the last token
        given is not among it, also when the generator is abandoned. To go on, pass that token first.

        Args:
            tokens: the prompt, as for eval().
            max_tokens: most tokens to give, 0 or more.
            temperature: 0 takes the most likely token; above, its logarithms of odds are divided by it.
            top_k: keep the k most likely tokens; 0 keeps all.
            top_p: keep the most likely tokens that make up this share of the probability, above 0, at most 1.
            min_p: keep tokens with at least this share of the most likely one's probability, 0..1.
            seed: of the random numbers, 0..4294967294; the same seed gives the same tokens.
            stop_at_eog: stop at a token that ends a generation, without giving it.

        Yields:
            Token ids.

        Raises:
            ArgumentError: at once, for an argument of the wrong type or out of range.
            ContextFullError: while generating, when n_ctx is reached.
        """
        ids = check_tokens(tokens, self._n_vocab)
        n_most = check_int("max_tokens", max_tokens, 0, 2**31 - 1)
        if check_float("top_p", top_p, 0.0, 1.0) == 0.0:
            raise ArgumentError(f"top_p: out of range: expected above 0, at most 1, got {top_p}")
        sampler = _native.Sampler(
            check_float("temperature", temperature, 0.0, 1e6),
            check_int("top_k", top_k, 0, 2**31 - 1),
            float(top_p),
            check_float("min_p", min_p, 0.0, 1.0),
            check_int("seed", seed, 0, 2**32 - 2),
        )
        return self._generate(ids, n_most, sampler, check_bool("stop_at_eog", stop_at_eog))

    def _generate(
        self, ids: npt.NDArray[np.int32], n_most: int, sampler: _native.Sampler, stop_at_eog: bool
    ) -> Iterator[int]:
        last = np.empty(1, dtype=np.int32)
        for _ in range(n_most):
            token = self.native.next_token(ids, sampler)
            if stop_at_eog and self._vocab.is_eog(token):
                return
            yield token
            last[0] = token
            ids = last

    def _fill(self, n: int, seed: int = 0) -> None:
        """Makes the cache `n` tokens long with copies of rows held, for measurements: quick, and worth nothing as text.

        Args:
            n: tokens held then, n_past..n_ctx; one at least must be held now.
            seed: which rows are copied, 0..2**64 - 1.

        Raises:
            ArgumentError: nothing is held yet, or an argument is of the wrong type or out of range.
        """
        self.native.fill(check_int("n", n, 0, 2**31 - 1), check_int("seed", seed, 0, 2**64 - 1))
