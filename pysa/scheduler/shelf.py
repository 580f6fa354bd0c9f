"""Lanes and the sessions on disk: what a lane would forget goes there, what another process read comes from there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pysa.prefix_cache import PrefixCache, settings_of
from pysa.scheduler.lane import Ids, Lane

if TYPE_CHECKING:
    from pysa.session import Session

log = logging.getLogger("pysa")

WORTH_KEEPING = 64  # tokens a lane would forget; less is evaluated sooner than a session is written


class Shelf:
    """A PrefixCache as lanes use it, with a thread of its own: files are slow, and the others decode meanwhile.

    Args:
        cache: decides what is worth keeping.
        like: a session whose settings all of them have.
    """

    def __init__(self, cache: PrefixCache, like: Session) -> None:
        self._cache, self._model = cache, like.model
        self._settings, self._kv_offload = settings_of(like), like.kv_offload
        self._thread = ThreadPoolExecutor(1, "pysa-shelf")

    def fetch(self, lane: Lane, prompt: Ids, ready: Callable[[Lane], None]) -> None:
        """Exchanges the session of a lane that is set aside, and tells `ready` when that is done or has failed."""

        def work() -> None:
            try:
                self._exchange(lane, prompt)
            except Exception:
                log.warning("prefix cache: a session was neither kept nor found", exc_info=True)
            ready(lane)

        self._thread.submit(work)

    def close(self, sessions: Sequence[Session]) -> None:
        """Waits for what is under way, and keeps sessions that nobody needs now."""
        self._thread.shutdown()
        for session in sessions:
            self._cache.put(session, self._settings)

    def _exchange(self, lane: Lane, prompt: Ids) -> None:
        """Keeps what the lane is about to forget; gives it a session that spares more, if there is one."""
        n_spared, n_lost = lane.n_spared(prompt)
        if n_lost >= WORTH_KEEPING:
            self._cache.put(lane.session, self._settings)
        found = self._cache.find(self._model, prompt, self._settings, longer_than=n_spared, kv_offload=self._kv_offload)
        if found is not None:
            lane.session.close()
            lane.session = found
