"""Prefix reuse: a prompt that begins as what a session holds evaluates only the rest.

rewind() decides how far back a session can go without approximating anything; evaluate_prompt() goes there, evaluates
the rest and leaves checkpoints where a conversation is likely to come back. The familiar class, the chat and the
scheduler call these; pysa/prefix_cache.py keeps sessions on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import Tokens, check_int, check_tokens
from pysa.errors import ContextFullError
from pysa.session import Session, return_position

Interrupt = Callable[[], bool]

TAIL = 64  # tokens; checkpoints lie about 4, 16, 64... times as far before a prompt's end


@dataclass(frozen=True)
class Reuse:
    """What a session spared a prompt.

    Args:
        n_reused: tokens of the prompt that were held, and kept.
        n_reevaluated: tokens of the prompt that were held, but have to be evaluated again: the window had forgotten
            what stood before them. The last token, which is evaluated for its logits, does not count.
    """

    n_reused: int
    n_reevaluated: int


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differs[0]) if differs.size else n


def rewind(session: Session, tokens: Tokens, *, keep_last: int = 1) -> Reuse:
    """Takes a session back to the longest prefix it shares with `tokens` to which it can return exactly.

    The rows it keeps are those that were computed: nothing is approximated. A session with a window returns to a
    checkpoint or within its slack; where neither reaches, it goes further back, and `n_reevaluated` says how far.

    Args:
        session: n_past is the return value's n_reused afterwards.
        tokens: the prompt that comes next, from position 0.
        keep_last: so many tokens at the prompt's end stay to be evaluated even if they are held, 0 or more.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range.
        SessionBusyError: another thread is in this session.
    """
    native = session.native
    ids = check_tokens(tokens, session._n_vocab, allow_empty=True)
    n_most = max(0, ids.size - check_int("keep_last", keep_last, 0, 2**31 - 1))
    n_shared = common_prefix(native.tokens, ids[:n_most])
    start = return_position(native, n_shared)
    native.truncate(start)
    return Reuse(start, n_shared - start)


def returnable(session: Session) -> list[tuple[int, int]]:
    """The positions to which a session can return exactly, as spans (first, last), the last first.

    The sinks, to which it always can, are left out where they are a span of their own.
    """
    native = session.native
    spans = []
    high, n_sink = native.n_past, native.plan["n_sink"]
    while high > n_sink:
        low = high
        while low > 0 and native.rollback_position(low - 1) == low - 1:
            low -= 1
        spans.append((low, high))
        high = native.rollback_position(low - 1) if low > 0 else 0
    return spans


def evaluate_prompt(
    session: Session, tokens: Tokens, *, interrupt: Interrupt | None = None
) -> tuple[npt.NDArray[np.float32], Reuse]:
    """Makes a session hold exactly `tokens`, with as little work as that takes.

    The last token is always evaluated by itself. So asking again for the same prompt gives the same logits, bit for
    bit, as the first time and as a fresh session. After an edit further up, logits equal a fresh session's within
    rounding, because the prompt is cut into ubatches at other places.

    A session with a window makes checkpoints: where the prompt departs from what was held (so that another version of
    this turn is free), before the last token (so that another answer is), and within a long prompt ever more rarely
    towards its beginning.

    Args:
        session: what it holds after an error or interrupt is a prefix of `tokens`; calling again goes on from there.
        tokens: the whole prompt, from position 0; at least one.
        interrupt: asked between the nodes of a graph; True stops the evaluation.

    Returns:
        float32 (n_vocab,), the scores of the token after the prompt; and what was reused.

    Raises:
        ArgumentError: no tokens, or one that is no id of the vocabulary.
        ContextFullError: they do not fit in n_ctx; the session is as it was.
        EvaluationCancelledError: `interrupt` said so.
        DeviceError: not enough memory.
        SessionBusyError: another thread is in this session.
    """
    native = session.native
    ids = check_tokens(tokens, session._n_vocab)
    if ids.size > native.n_ctx:
        raise ContextFullError(
            f"prompt: does not fit the context: expected at most {native.n_ctx} tokens (n_ctx), got {ids.size}; "
            "shorten it, or make a session with a larger n_ctx"
        )
    reuse = rewind(session, ids)
    departs = reuse.n_reused + reuse.n_reevaluated
    _read(native, ids[:departs], interrupt)
    if 0 < departs < ids.size - 1:
        native.checkpoint()
    _read(native, ids[:-1], interrupt)
    native.checkpoint()
    logits: npt.NDArray[Any] = native.eval(ids[-1:], "last", interrupt)
    return logits[0], reuse


def _read(native: _native.Session, ids: npt.NDArray[np.int32], interrupt: Interrupt | None) -> None:
    """Evaluates `ids` from n_past on, an ubatch at a time, so that an interrupt loses one ubatch's work only."""
    while (n_past := native.n_past) < ids.size:
        n_left = ids.size - n_past
        n_next = native.ubatch_size(n_left)
        native.eval(ids[n_past : n_past + n_next], "none", interrupt)
        if n_next < n_left and spacing(n_left) > spacing(n_left - n_next):
            native.checkpoint()


def spacing(n_left: int) -> int:
    """Changes by one each time a prompt's end comes four times closer: a checkpoint is due then."""
    return max(0, n_left // TAIL).bit_length() // 2
