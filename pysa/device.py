"""`pysa.devices()`: the GPUs that models can be kept on, and what the engine is told before it looks for them.

Which layers go there is chosen by the engine (native/src/engine/placement.h) and asked for through Model.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from pysa import _native
from pysa._arguments import check_text
from pysa.errors import ArgumentError, DeviceError

log = logging.getLogger("pysa")

NOT_GPUS = ("auto", "cpu")  # what device= takes besides the name of a GPU
RESERVE_BYTES, RESERVE_PART = 256 << 20, 16  # so much, or a part of all, is left alone, as the engine does
EMULATED = "EMU0"  # of builds with PYSA_TESTS; nobody gets it who does not name it
NO_BACKEND = "this build has no GPU backend"  # how _native.device_support() begins then


@dataclass(frozen=True)
class Device:
    """A GPU of this machine that this build can use.

    Attributes:
        name: what `device=` and `--device` take: CUDA0, Vulkan0.
        description: the card.
        attention: `fused` if there are kernels of our own for it, else `composed`.
        is_integrated: it shares the processor's memory.
        total_bytes: its memory.
        free_bytes: of which nobody held when it was asked, as the driver says.
    """

    name: str
    description: str
    attention: str
    is_integrated: bool
    total_bytes: int
    free_bytes: int

    @property
    def room_bytes(self) -> int:
        """What a model and its sessions may take: free memory, less what the engine leaves alone."""
        return max(0, self.free_bytes - min(RESERVE_BYTES, self.total_bytes // RESERVE_PART))


def devices() -> list[Device]:
    """The GPUs that models can be kept on, and what memory they have now; empty without any.

    device_support() tells why there is none.
    """
    _prepare()
    return [Device(**device) for device in _native.devices()]


def device_support() -> str:
    """Why no GPU is used by itself: the build, a library that is missing, or no card. Empty if there is one."""
    if find_device("auto") is not None:
        return ""
    return _native.device_support() or f"{NO_BACKEND} but {EMULATED}, which is for tests"


def check_device(device: object) -> str:
    """Returns the value of a `device=` if it is auto, cpu or the name of a GPU that is there.

    Raises:
        ArgumentError: no text.
        DeviceError: there is no such GPU; with the names there are.
    """
    name = check_text("device", device)
    if name not in NOT_GPUS:
        find_device(name)
    elif name != "cpu":
        _prepare()  # the engine looks for the best one itself
    return name


def find_device(name: str) -> Device | None:
    """The GPU of this name; of `auto` the one with most memory free, an integrated one last, as the engine chooses.

    Returns:
        None for cpu, and for auto where there is no GPU.

    Raises:
        DeviceError: there is no such GPU; with the names there are.
    """
    if name == "cpu":
        return None
    found = devices()
    if name == "auto":
        real = [device for device in found if device.name != EMULATED]
        return max(real, key=lambda device: (not device.is_integrated, device.free_bytes), default=None)
    for device in found:
        if device.name == name:
            return device
    names = ", ".join([*NOT_GPUS, *(device.name for device in found)])
    why = "" if found else f"; {_native.device_support()}"
    raise DeviceError(f'device: no such GPU: expected one of {names}, got "{name}"{why}')


def nth_device(argument: str, n: int) -> str:
    """The name of the n-th GPU.

    Raises:
        ArgumentError: there are not so many; names them.
    """
    names = [device.name for device in devices()]
    if n < len(names):
        return names[n]
    raise ArgumentError(f"{argument}: out of range: expected 0..{len(names) - 1} ({', '.join(names)}), got {n}")


def say_if_cpu(path: str, device: str, n_gpu_layers: int, n_on_gpu: int) -> None:
    """Tells the logger `pysa` why a model runs on the CPU though a GPU was wanted; each reason once a process.

    A build without any GPU backend is silent unless layers were asked for by number.
    """
    if n_on_gpu or n_gpu_layers == 0 or device == "cpu":
        return
    found = find_device(device)
    why = device_support() if found is None else f"no layer fits into {found.name}'s free memory beside the cache"
    if found is None and why.startswith(NO_BACKEND) and n_gpu_layers < 0:
        return
    _say_once(f"running on the CPU: {why}", path)


@functools.cache
def _prepare() -> None:
    """Tells the engine where PyPI's packages of CUDA's libraries are; they are no part of the system's folders."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    roots = [] if spec is None else spec.submodule_search_locations or []
    # nvidia/cu13/lib, or before CUDA 13 nvidia/cublas/lib and others.
    folders = [str(folder) for root in roots for folder in sorted(Path(root).glob("*/lib")) if folder.is_dir()]
    _native.add_device_library_dirs(folders)


_said: set[str] = set()


def _say_once(message: str, path: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning("%s: %s", path, message)
