"""Which device to compute on, and the way there. Imports torch."""

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError


def choose_device(device: str) -> str:
    """``auto`` is a GPU where there is one. Raises TenasError for ``cuda`` without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TenasError("The device cuda was asked for, but PyTorch finds no GPU here.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Put values where ``device`` reads them, without waiting until a GPU has done what it was asked before."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        # Only out of pinned memory can a copy go on by itself.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
