"""Which device to compute on, and the way there. Imports torch."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError
from tenas.locks import Lock, lock_folder, take_one


def choose_device(device: str) -> str:
    """``auto`` is a GPU where there is one. Raises TenasError for ``cuda`` without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TenasError("The device cuda was asked for, but PyTorch finds no GPU here.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@cache
def _own_gpu() -> Lock:
    # By UUID: numbers are of the devices that a process sees, and two processes may see different ones.
    names = [f"gpu-{torch.cuda.get_device_properties(number).uuid}" for number in range(torch.cuda.device_count())]
    return take_one(names, lock_folder(), "GPU")


def own_gpu() -> int:
    """The number of a GPU that no other of the user's processes has; this one keeps it to its end, as it does its CUDA context.

    Snakemake counts GPUs and names none, so processes settle by locks who has which, and wait where all are taken. With one GPU
    to be seen there is nothing to settle: a scheduler has named it in CUDA_VISIBLE_DEVICES, or the machine has no other.
    """
    return _own_gpu().number if torch.cuda.device_count() > 1 else 0


def own_device(device: str) -> str:
    """``choose_device``, and on a GPU it is one that this process alone has (``own_gpu``), the current device of torch."""
    kind = choose_device(device)
    if kind == "cuda":
        torch.cuda.set_device(own_gpu())
    return kind


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Put values where ``device`` reads them, without waiting until a GPU has done what it was asked before."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        # Only out of pinned memory can a copy go on by itself.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
