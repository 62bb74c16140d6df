"""The memory that the programs of a plan work on: arrays with borders, what they read besides, and who keeps it alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenas.measures.kernel.compiled import passes
from tenas.measures.kernel.cotangents import Base, Convolution
from tenas.measures.kernel.geometry import Array, Grid, Pair
from tenas.measures.kernel.instructions import NOWHERE, Address, Data, Place, Positions
from tenas.measures.ntk_rules import RELUS
from tenas.measures.ntk_tape import Value

# Cotangents in a vector.
LANES = 8
# Bytes of arrays that are kept from one kernel to the next.
KEPT_BYTES = 2**28


def address(array: Array) -> Address:
    """Where the array's memory starts."""
    return Address(array.__array_interface__["data"][0])  # several times faster than array.ctypes.data


def _zeros(*outer: int, grid: Grid, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*outer, grid.height + 2 * grid.halo, grid.row, LANES, dtype=dtype)


class Arrays:
    """Arrays of cotangents that are not in use: fresh memory from the system costs as much time as the work on it.

    Kernels don't write to borders, so those of an array that comes back are zero for the next one of the same shape.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.free: dict[tuple[int, int, Grid, torch.dtype], list[Tensor]] = {}

    def take(self, n: int, channels: int, grid: Grid, dtype: torch.dtype) -> Tensor:
        held = self.free.get((n, channels, grid, dtype))
        return held.pop() if held else _zeros(n, channels, grid=grid, dtype=dtype)

    def give(self, array: Tensor, grid: Grid) -> None:
        if array.nbytes + sum(a.nbytes for held in self.free.values() for a in held) > self.most:
            self.free.clear()
        if array.nbytes <= self.most:
            self.free.setdefault((array.shape[0], array.shape[1], grid, array.dtype), []).append(array)


ARRAYS = Arrays(KEPT_BYTES)


class Region(NamedTuple):
    """A stretch of memory with a name. ``grid``: of an array of cotangents; ``values``: the numbers of what is none."""

    name: str
    address: int
    bytes: int
    grid: Grid | None = None
    values: Array | None = None


class Workspace:
    """Arrays, scratch arrays and constants of one plan, for batches of ``n`` images.

    ``halos``: the border that images of each size need, none where a size isn't there.
    """

    def __init__(self, n: int, dtype: torch.dtype, halos: dict[Pair, int]) -> None:
        self.n = n
        self.torch_dtype = dtype
        self.dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self.vector_bytes = self.dtype.itemsize * LANES
        self._halos = halos
        self._grids: dict[torch.Size, Grid] = {}
        self._arrays: list[tuple[Tensor, Grid]] = []
        self._scratches: dict[tuple[Grid, int], Tensor] = {}
        self._constants: list[Array] = []
        self._values: list[Tensor] = []
        self._rectified: dict[Value, Value] = {}
        self._positions: dict[tuple[Value | None, Grid, int, Pair, Grid], Positions] = {}

    def grid(self, value: Value) -> Grid:
        """Where the pixels of a value's cotangents lie."""
        size = value.shape[2:]
        if size not in self._grids:
            self._grids[size] = Grid.of(size[0], size[1], self._halos.get((size[0], size[1]), 0))
        return self._grids[size]

    def same_rectified(self, value: Value) -> Value:
        """The first of all ReLUs of the same value that the plan has met: they hold the same."""
        if value.producer is not None and value.producer.op in RELUS:
            return self._rectified.setdefault(value.producer.args[0], value)
        return value

    # Arrays of cotangents.

    def place_bases(self, bases: Iterable[Base]) -> None:
        """Give each base an array; one of the same shape that is no longer used is used again."""
        free: dict[tuple[int, Grid], list[tuple[int, Tensor]]] = {}
        for base in bases:
            held = free.setdefault((base.channels, base.grid), [])
            index = next((i for i, (last, _) in enumerate(held) if last < base.created), None)
            if index is None:
                array = ARRAYS.take(self.n, base.channels, base.grid, self.torch_dtype)
                self._arrays.append((array, base.grid))
            else:
                array = held.pop(index)[1]
            held.append((base.last, array))
            base.array = array

    def close(self) -> None:
        """Give the arrays back for the next plan."""
        for array, grid in self._arrays:
            ARRAYS.give(array, grid)
        self._arrays.clear()

    def scratch(self, grid: Grid, channels: int) -> Tensor:
        """An array that holds something between two instructions, the same for all samples."""
        if (grid, channels) not in self._scratches:
            self._scratches[grid, channels] = _zeros(channels, grid=grid, dtype=self.torch_dtype)
        return self._scratches[grid, channels]

    def place(self, array: Tensor, grid: Grid, *, channel: int = 0, y: int = 0, x: int = 0) -> Place:
        """Where pixel (y, x) of a channel is. A scratch array is the same for all samples."""
        plane = grid.plane * self.vector_bytes
        start = array.data_ptr() + channel * plane + (grid.first + y * grid.row + x) * self.vector_bytes
        return Place(Address(start), array.shape[1] * plane if array.ndim == 5 else 0, plane, grid.row * self.vector_bytes)

    def corner(self, array: Tensor, grid: Grid, *, channel: int = 0) -> Place:
        """Where the border of a channel begins, which positions and offsets of convolutions count from."""
        return self.place(array, grid, channel=channel, y=-grid.halo, x=-grid.halo)

    # What programs read besides.

    def keep(self, array: Array) -> Address:
        """The address of an array, which is kept for as long as the plan."""
        self._constants.append(array)
        return address(array)

    def scalars(self, array: Array) -> Address:
        """The address of an array in the dtype of the cotangents."""
        return self.keep(np.ascontiguousarray(array, dtype=self.dtype))

    def data(self, value: Value) -> Data:
        """A value of the forward pass."""
        data = value.data.contiguous()
        self._values.append(data)
        return Data(Address(data.data_ptr()), value.tensor[0].numel() * self.dtype.itemsize)

    def positions(self, value: Value, rectified: bool, convolution: Convolution, remainders: Pair, grid: Grid) -> Positions:
        """Where ``value``, an input of a convolution, has something to send to or take from the output's ``grid``.

        Of a value that is rectified these are the pixels that aren't zero, with their values; of others all, without.
        """
        own, stride = self.grid(value), convolution.window.stride
        key = (value if rectified else None, own, stride, remainders, grid)
        if key not in self._positions:
            height, width = value.shape[2:]
            if rectified:
                images = value.data.contiguous().numpy().reshape(-1, height, width)
                arrays = passes.list_positions(
                    images, stride, *remainders, own.row, own.first, grid.row, grid.first, self.vector_bytes
                )  # fmt: skip
                targets, sources, values, starts = map(self.keep, arrays)
                self._positions[key] = Positions(targets, sources, values, starts, dense=0)
            else:
                y, x = np.arange(remainders[0], height, stride)[:, None], np.arange(remainders[1], width, stride)
                places = own.first + y * own.row + x, grid.first + y // stride * grid.row + x // stride
                targets, sources = (self.keep((a.reshape(-1) * self.vector_bytes).astype(np.int32)) for a in places)
                self._positions[key] = Positions(targets, sources, NOWHERE, NOWHERE, dense=places[0].size)
        return self._positions[key]

    def regions(self) -> Iterator[Region]:
        """All of this memory by name, for listings of programs."""
        for number, (tensor, grid) in enumerate(self._arrays):
            yield Region(f"array{number}", tensor.data_ptr(), tensor.nbytes, grid)
        for number, ((grid, _), tensor) in enumerate(self._scratches.items()):
            yield Region(f"scratch{number}", tensor.data_ptr(), tensor.nbytes, grid)
        for tensor in self._values:
            yield Region("value", tensor.data_ptr(), tensor.nbytes, values=tensor.numpy())
        for array in self._constants:
            yield Region("constant", address(array), array.nbytes, values=array)
