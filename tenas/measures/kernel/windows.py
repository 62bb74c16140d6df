"""Windows of those of torch's convolutions and average poolings that have kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenas.measures.kernel.geometry import Array, Pair, Window, share_of
from tenas.measures.ntk_tape import Record, aten


def _pair(setting: Sequence[int]) -> Pair:
    return (setting[0], setting[-1])


def window_of(
    ndim: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    *_: object,
) -> Window | None:  # fmt: skip
    """Window of a convolution from the arguments of torch's operator; None if it is transposed, anisotropic, or not of images."""
    if ndim != 4 or transposed or len(set(stride)) > 1 or len(set(dilation)) > 1:
        return None
    return Window(_pair(kernel), stride[0], _pair(padding), dilation[0])


# Defaults of the operator's arguments after the kernel: stride, padding, ceil_mode, count_include_pad, divisor_override.
_AVERAGE_DEFAULTS: tuple[Any, ...] = ([], [0], False, True, None)


def _average_settings(settings: tuple[Any, ...]) -> tuple[Any, ...]:
    return settings + _AVERAGE_DEFAULTS[len(settings) :]


def average_window(ndim: int, kernel: Sequence[int], *settings: Any) -> Window | None:
    """Window of an average pooling from the arguments of torch's operator; None if it has incomplete windows."""
    stride, padding, ceil, _, divisor = _average_settings(settings)
    stride = stride or kernel
    if ndim != 4 or ceil or divisor is not None or len(set(stride)) > 1:
        return None
    return Window(_pair(kernel), stride[0], _pair(padding), 1)


def average_share(window: Window, size: Sequence[int], kernel: Sequence[int], *settings: Any) -> Array:
    """1 / the number of pixels averaged by each output of an average pooling: (height, width)."""
    *_, include_padding, _ = _average_settings(settings)
    return share_of(window, (size[0], size[1]), include_padding)


_WINDOWS: dict[object, Callable[[Record], Window | None]] = {
    aten.convolution.default: lambda record: window_of(record.args[0].tensor.ndim, record.args[1].shape[2:], *record.args[3:]),
    aten.avg_pool2d.default: lambda record: average_window(record.args[0].tensor.ndim, *record.args[1:]),
}


def window_at(record: Record) -> Window | None:
    """Window of a convolution or average pooling with kernels."""
    if record.op not in _WINDOWS:
        return None
    if "window" not in record.cache:
        record.cache["window"] = _WINDOWS[record.op](record)
    window: Window | None = record.cache["window"]
    return window
