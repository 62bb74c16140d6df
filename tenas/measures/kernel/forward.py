"""Forward operators for small images by compiled kernels, where torch's are slow: the same results to rounding.

Torch needs 4.5 ms for a 1x1 convolution of 72 images of 3 x 32 x 32, and 1.8 ms for an average pooling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenas.measures.kernel.compiled import passes, vector
from tenas.measures.kernel.geometry import Array, Window
from tenas.measures.kernel.windows import average_share, average_window, window_of
from tenas.measures.kernel.workspace import LANES
from tenas.measures.ntk_primitives import PRIMITIVES
from tenas.measures.ntk_tape import aten

Forward = Callable[..., Tensor | tuple[Tensor, Tensor] | None]
# With more input channels per group, torch's convolutions are as fast.
CHANNELS = 8


def _suits(x: Tensor, window: Window, channels: int) -> bool:
    return (
        window.stride == 1
        and channels <= CHANNELS
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()
        and x.numel() > 0
    )


@functools.lru_cache(maxsize=64)
def _ones(height: int, width: int) -> Array:
    return np.ones((height, width), np.float32)


def _convolve(x: Tensor, weight: Array, share: Array, groups: int, window: Window) -> Tensor:
    images = x.detach().numpy()
    template = vector.template(images.dtype, LANES)
    share = share.astype(images.dtype, copy=False)
    result = passes.convolve(template, images, weight, share, groups, window.padding, window.dilation)
    return torch.from_numpy(result)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor | None:
    """A convolution; None where torch's is faster."""
    window = window_of(x.ndim, weight.shape[2:], *settings)
    if window is None or bias is not None or not _suits(x, window, weight.shape[1]) or weight.dtype != x.dtype:
        return None
    out = [x.shape[2 + axis] + 2 * window.padding[axis] - window.dilation * (window.kernel[axis] - 1) for axis in (0, 1)]
    if min(out) < 1:
        return None
    return _convolve(x, weight.detach().contiguous().numpy(), _ones(*out), settings[-1], window)


def average_pool(x: Tensor, *settings: Any) -> Tensor | None:
    """An average pooling; None where torch's is faster."""
    window = average_window(x.ndim, *settings)
    if window is None or not _suits(x, window, 1):
        return None
    share = average_share(window, x.shape[2:], *settings)
    weight = np.ones((x.shape[1], 1, *window.kernel), dtype=x.detach().numpy().dtype)
    return _convolve(x, weight, share, x.shape[1], window)


def max_pool(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor] | None:
    """Maxima and their positions; None where torch's are as fast: with channels innermost, which torch vectorises."""
    if x.ndim != 4 or x.device.type != "cpu" or x.numel() == 0:
        return None
    planes = x.detach().reshape(1, -1, *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    maxima, places = (found.contiguous() for found in aten.max_pool2d_with_indices.default(planes, *settings))
    shape = (*x.shape[:2], *maxima.shape[2:])
    return maxima.view(shape), places.view(shape)


FORWARD: dict[object, Forward] = {op: globals()[primitive.forward] for op, primitive in PRIMITIVES.items() if primitive.forward}
