"""What of a model and its session lies on a GPU, for the lines and the JSON of the commands."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysa.cli.render import size_text
from pysa.device import find_device

if TYPE_CHECKING:
    from pysa.session import Session


@dataclass(frozen=True)
class Placement:
    """Where a session computes. Sizes in bytes; `device` is `cpu` and all counts are 0 where nothing is on a GPU."""

    device: str
    n_gpu_layers: int  # the output counts as one
    n_layers: int  # of the model, the output counted too
    weights_bytes: int
    n_cached_layers: int
    cache_bytes: int  # of these layers, as allocated now

    @classmethod
    def of(cls, session: Session) -> Placement:
        """Of a session as it is now."""
        model = session.model
        return cls(
            model.device,
            model.n_gpu_layers,
            model.n_layer + 1,
            model.device_bytes,
            model.n_layer - session.first_gpu_layer,
            session.memory()["device"],
        )

    def text(self) -> str | None:
        """In one line; None if nothing is on a GPU."""
        if not self.n_gpu_layers:
            return None
        size = f" ({size_text(self.cache_bytes)})" if self.cache_bytes else ""
        cache = f"the cache of {self.n_cached_layers}{size}" if self.n_cached_layers else "no cache"
        layers = f"{self.n_gpu_layers} of {self.n_layers} layers ({size_text(self.weights_bytes)})"
        return f"{self.device}: {layers} and {cache}"


def card_facts(device: str) -> dict[str, str]:
    """`card` and `driver` of a GPU, for reports of measurements; empty texts for cpu, and where they are not known."""
    found = find_device(device)
    return {"card": "", "driver": ""} if found is None else {"card": found.description, "driver": _driver()}


def _driver() -> str:
    """The version of NVIDIA's driver, if its program is there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()
