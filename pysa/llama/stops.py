"""The text of a completion as it grows by tokens, and where a stop string ends it. Knows no model and no result."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class GrowingText:
    """Pieces of tokens to text. Bytes that are no UTF-8 are left out; half a character waits for the rest of it.

    Args:
        stops: strings that end the text; they are not part of it.

    Attributes:
        text: all characters so far, a stop string among them.
        ends: characters that are complete after each token.
        stop_at: where the earliest stop string begins; None as long as there is none.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.ends: list[int] = []
        self.stop_at: int | None = None
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def feed(self, piece: bytes) -> bool:
        """Adds a token's bytes; whether the text has come to a stop string."""
        # A stop string may have begun in earlier tokens.
        begin = max(0, len(self.text) - self._longest + 1)
        self.text += self._decoder.decode(piece)
        self.ends.append(len(self.text))
        found = [at for at in (self.text.find(stop, begin) for stop in self._stops) if at >= 0]
        if found and self.stop_at is None:
            self.stop_at = min(found)
        return self.stop_at is not None

    def kept(self) -> str:
        """The text up to the stop string, if there is one."""
        return self.text if self.stop_at is None else self.text[: self.stop_at]

    def n_safe(self) -> int:
        """Characters that no stop string can take back any more."""
        if self.stop_at is not None:
            return self.stop_at
        for n_held in range(min(self._longest - 1, len(self.text)), 0, -1):
            tail = self.text[-n_held:]
            if any(stop.startswith(tail) for stop in self._stops):
                return len(self.text) - n_held
        return len(self.text)
