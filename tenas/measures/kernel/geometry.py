"""Positions of pixels in arrays with a border, and the pixels that a window reads. No torch."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tenas.measures.kernel.compiled.loops import padded

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]


class Grid(NamedTuple):
    """Positions of an image's pixels in an array with a border of ``halo`` zeros.

    Strides in vectors: to the next row (``row``) and the next channel (``plane``); ``first``: from the start of a plane to the
    first pixel.
    """

    height: int
    width: int
    halo: int
    row: int
    plane: int
    first: int

    @classmethod
    def of(cls, height: int, width: int, halo: int) -> Grid:
        row = width + 2 * halo
        return cls(height, width, halo, row, (height + 2 * halo) * row, halo * row + halo)


class Window(NamedTuple):
    """Window of a convolution or pooling: kernel, stride, padding and dilation, per dimension."""

    kernel: Pair
    stride: int
    padding: Pair
    dilation: int

    def phases(self, axis: int) -> list[list[tuple[int, int]]]:
        """Pairs (tap, o) by which input coordinate q = stride * p + phase contributes to output p + o."""
        result: list[list[tuple[int, int]]] = [[] for _ in range(self.stride)]
        for tap in reversed(range(self.kernel[axis])):
            for phase in range(self.stride):
                offset, rest = divmod(phase + self.padding[axis] - self.dilation * tap, self.stride)
                if rest == 0:
                    result[phase].append((tap, offset))
        return result


@functools.lru_cache(maxsize=1024)
def centre_of(window: Window) -> Pair | None:
    """Tap that reads the output's own position, in a window that preserves the size."""
    y, x = (k // 2 for k in window.kernel)
    same = window.stride == 1 and window.padding == (window.dilation * y, window.dilation * x)
    return (y, x) if same and all(k % 2 for k in window.kernel) else None


@functools.lru_cache(maxsize=1024)
def halo_of(window: Window, size: Pair, out: Pair) -> int:
    """Border of an output of size ``out`` that contributions to inputs of ``size`` read."""
    halo = 0
    for axis in (0, 1):
        for remainder, taps in enumerate(window.phases(axis)):
            if remainder < size[axis]:
                last = (size[axis] - 1 - remainder) // window.stride
                for _, offset in taps:
                    halo = max(halo, -offset, last + offset - (out[axis] - 1))
    return halo


class Phase(NamedTuple):
    """Part of a convolution for input pixels with the same remainders by the stride.

    ``offsets``: in bytes, from the output pixel at the quotients, in the order (channel of a group, row, column).
    ``rows``, ``columns``: of the kernel, the taps of this part. ``runs``: whether each row is three neighbours.
    """

    remainders: Pair
    offsets: Array
    rows: list[int]
    columns: list[int]
    runs: bool


@functools.lru_cache(maxsize=1024)
def phases_of(window: Window, channels: int, size: Pair, grid: Grid, vector: int) -> list[Phase]:
    """Phases of a convolution with ``channels`` channels per group, for images of a size; phases without taps are left out.

    ``grid``: of its output. ``vector``: bytes of a vector.
    """
    phases = []
    for y, rows in enumerate(window.phases(0)):
        for x, columns in enumerate(window.phases(1)):
            if rows and columns and y < size[0] and x < size[1]:
                steps = [offset for _, offset in columns]
                offsets = (
                    np.arange(channels)[:, None, None] * grid.plane
                    + np.array([offset for _, offset in rows])[:, None] * grid.row
                    + np.array(steps)
                )
                offsets = (offsets.reshape(-1) * vector).astype(np.int32)
                taps = [tap for tap, _ in rows], [tap for tap, _ in columns]
                phases.append(Phase((y, x), offsets, *taps, runs=steps == [-1, 0, 1]))
    return phases


@functools.lru_cache(maxsize=1024)
def products_of(
    window: Window, shape: tuple[int, ...], channels: int, size: Pair, grid: Grid, vector: int
) -> tuple[Array, list[tuple[Phase, int, Array]]]:
    """Rows of the sums of g * patch by element of a weight of a shape, -1 for an element without any.

    Also for each phase its first row, and its offsets padded to the tiles of the instruction ``Accumulate``.
    """
    outer, each = shape[:2]
    groups = channels // each
    table = np.full((groups, outer // groups, *shape[1:]), -1, np.int64)
    phases, first = [], 0
    for phase in phases_of(window, outer // groups, size, grid, vector):
        taps = len(phase.offsets)
        whole = padded(taps)
        offsets = np.concatenate([phase.offsets, np.zeros(whole - taps, np.int32)])
        numbers = first + np.arange(channels)[:, None] * whole + np.arange(taps)
        numbers = numbers.reshape(groups, each, outer // groups, len(phase.rows), len(phase.columns))
        table[:, :, :, np.array(phase.rows)[:, None], phase.columns] = numbers.transpose(0, 2, 1, 3, 4)
        phases.append((phase, first, offsets))
        first += channels * whole
    return table.reshape(shape), phases


@functools.lru_cache(maxsize=1024)
def share_of(window: Window, size: Pair, include_padding: bool) -> Array:
    """1 / the number of pixels averaged by each output of an average pooling: (height, width)."""
    counts = []
    for axis in (0, 1):
        out = (size[axis] + 2 * window.padding[axis] - window.kernel[axis]) // window.stride + 1
        start = np.arange(out) * window.stride - window.padding[axis]
        stop = start + window.kernel[axis]
        counts.append(stop - start if include_padding else np.minimum(stop, size[axis]) - np.maximum(start, 0))
    share: Array = 1 / np.outer(*counts)
    return share
