"""Where a pysa.Llama computes: what n_gpu_layers, main_gpu and split_mode of llama_cpp.Llama come to for pysa.Model."""

from __future__ import annotations

from dataclasses import dataclass

from pysa._arguments import check_int
from pysa.device import check_device, device_support, devices, nth_device
from pysa.llama.arguments import LLAMA_SPLIT_MODE_NONE


def llama_supports_gpu_offload() -> bool:
    """Whether there is a GPU that layers can be kept on, as llama_cpp has it."""
    return not device_support()


@dataclass(frozen=True)
class Offload:
    """What Model is opened with; `no_gpu`: why there is no GPU though layers were asked for, or empty."""

    device: str
    n_gpu_layers: int
    no_gpu: str = ""


def choose_offload(n_gpu_layers: int, main_gpu: int, split_mode: int, device: str | None) -> Offload:
    """Of the constructor's arguments.

    Args:
        n_gpu_layers: 0: none; -1: as many as fit.
        main_gpu: which of devices(); 0, unless split_mode is NONE: the best one there is.
        split_mode: LLAMA_SPLIT_MODE_NONE has main_gpu meant as it is.
        device: in place of both, as Model has it.

    Raises:
        ArgumentError: there are not so many GPUs, or a value is of the wrong type or out of range.
        DeviceError: there is no such device.
    """
    n_layers = check_int("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1)
    n = check_int("main_gpu", main_gpu, 0, 2**31 - 1)
    if device is not None:
        return Offload(check_device(device), n_layers)
    if n_layers == 0:
        return Offload("cpu", 0)
    if (n > 0 or split_mode == LLAMA_SPLIT_MODE_NONE) and devices():
        return Offload(nth_device("main_gpu", n), n_layers)
    why = device_support()
    return Offload("cpu", 0, why) if why else Offload("auto", n_layers)
