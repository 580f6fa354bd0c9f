"""Lanes and the sessions on disk: what a lane would forget goes there, what another process read comes from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysa.prefix_cache import PrefixCache, settings_of
from pysa.scheduler.lane import Ids, Lane

if TYPE_CHECKING:
    from pysa.session import Session


WORTH_KEEPING = 64  # tokens a lane would forget; less is evaluated sooner than a session is written


class Shelf:
    """A PrefixCache as lanes use it.

    Args:
        cache: decides what is worth keeping.
        like: a session whose settings all of them have.
    """

    def __init__(self, cache: PrefixCache, like: Session) -> None:
        self._cache, self._model, self._settings = cache, like.model, settings_of(like)

    def exchange(self, lane: Lane, prompt: Ids) -> None:
        """Keeps what the lane is about to forget; gives it a session that spares more of the prompt, if there is one.

        Raises:
            PysaError: a session can be neither kept nor read; the lane is as it was.
        """
        n_spared, n_lost = lane.n_spared(prompt)
        if n_lost >= WORTH_KEEPING:
            self._cache.put(lane.session, self._settings)
        found = self._cache.find(self._model, prompt, self._settings, longer_than=n_spared)
        if found is not None:
            lane.session.close()
            lane.session = found

    def put(self, session: Session) -> None:
        """Keeps a session that nobody needs now."""
        self._cache.put(session, self._settings)
