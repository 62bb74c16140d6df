"""The device to compute on, and transfers to it. Imports torch."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError
from tenas.locks import Lock, lock_folder, take_one


def choose_device(device: str) -> str:
    """Resolve ``auto`` to a GPU if there is one, else to the CPU. Raises TenasError for ``cuda`` without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TenasError("The device cuda was asked for, but PyTorch finds no GPU here.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@cache
def _own_gpu() -> Lock:
    # By UUID: indices count the devices that a process sees, and two processes may see different ones.
    names = [f"gpu-{torch.cuda.get_device_properties(number).uuid}" for number in range(torch.cuda.device_count())]
    return take_one(names, lock_folder(), "GPU")


def own_gpu() -> int:
    """Index of a GPU that no other process of this user holds, held until this process ends, as is its CUDA context.

    Snakemake counts GPUs but assigns none, so processes assign them by locks, and wait while all are held. With one visible GPU
    there is nothing to assign: the scheduler chose it by CUDA_VISIBLE_DEVICES, or the machine has no other.
    """
    return _own_gpu().number if torch.cuda.device_count() > 1 else 0


def own_device(device: str) -> str:
    """``choose_device``; if it is a GPU, make one that only this process holds (``own_gpu``) torch's current device."""
    kind = choose_device(device)
    if kind == "cuda":
        torch.cuda.set_device(own_gpu())
    return kind


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy values to ``device`` without waiting for the work queued on a GPU."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        # Copies are asynchronous from pinned memory only.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
