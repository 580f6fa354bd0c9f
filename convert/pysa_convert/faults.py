"""Everything wrong with one input is collected here and raised as one error."""

from __future__ import annotations

from pysa.errors import ModelFileError, PysaError

N_SHOWN = 20


class Faults:
    """Collects faults of one file or folder; `raise_if_any` raises one error that names them all."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def add(self, fault: str) -> None:
        """Records one fault: `<place>: expected <X>, got <Y>`."""
        self.found.append(fault)

    def raise_if_any(self, error: type[PysaError] = ModelFileError) -> None:
        """Raises `error` with all faults, if there are any."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise error(f"{self.where}: {self.found[0]}")
        more = f"; and {len(self.found) - N_SHOWN} more" if len(self.found) > N_SHOWN else ""
        raise error(f"{self.where}: {len(self.found)} faults: " + "; ".join(self.found[:N_SHOWN]) + more)
