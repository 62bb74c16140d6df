"""Memory of the programs of a plan: arrays with borders, constants, values of the forward pass, and their lifetimes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenas.measures.kernel.compiled import passes
from tenas.measures.kernel.cotangents import Base, Buffer, Convolution
from tenas.measures.kernel.geometry import Array, Grid, Pair
from tenas.measures.kernel.instructions import NOWHERE, Address, Data, Place, Positions
from tenas.measures.ntk_rules import RELUS
from tenas.measures.ntk_tape import Value

# Number of cotangents per vector.
LANES = 8
# Most bytes of arrays kept from one kernel to the next.
KEPT_BYTES = 2**28
# Addresses below 2**48 are real. In others, the bits above number a region, whose location differs between runs of the plan.
REGION_BITS = 48


def address(array: Array) -> Address:
    """Address of an array's memory."""
    return Address(array.__array_interface__["data"][0])  # several times faster than array.ctypes.data


def _zeros(*outer: int, grid: Grid, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*outer, grid.height + 2 * grid.halo, grid.row, LANES, dtype=dtype)


class Arrays:
    """Pool of unused arrays of cotangents: fresh memory from the system costs as much time as the work on it.

    Kernels do not write to borders, so the borders of a returned array are zero for its next use with the same shape.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.free: dict[tuple[int, int, Grid, torch.dtype], list[Tensor]] = {}
        self.bytes = 0

    def take(self, n: int, channels: int, grid: Grid, dtype: torch.dtype) -> Tensor:
        held = self.free.get((n, channels, grid, dtype))
        if not held:
            return _zeros(n, channels, grid=grid, dtype=dtype)
        array = held.pop()
        self.bytes -= array.nbytes
        return array

    def give(self, array: Tensor, grid: Grid) -> None:
        if array.nbytes + self.bytes > self.most:
            self.free.clear()
            self.bytes = 0
        if array.nbytes <= self.most:
            self.bytes += array.nbytes
            self.free.setdefault((array.shape[0], array.shape[1], grid, array.dtype), []).append(array)


ARRAYS = Arrays(KEPT_BYTES)


class Region(NamedTuple):
    """A named piece of memory. ``grid``: of an array of cotangents; ``values``: the contents of any other."""

    name: str
    address: int
    bytes: int
    grid: Grid | None = None
    values: Array | None = None


class Workspace:
    """Arrays, scratch arrays and constants of one plan, for batches of ``n`` images.

    A plan is made once and run many times. Memory whose location differs between runs (arrays of cotangents, values of the
    forward pass, lists of positions) is a region: its addresses contain the region's number until ``link`` replaces it by the
    location. Data of fixed size that depend on values are arrays of the plan, which a function refills in each run (``renew``).

    ``halos``: border by size of images; no border for other sizes.
    """

    def __init__(self, n: int, dtype: torch.dtype, halos: dict[Pair, int]) -> None:
        self.n = n
        self.torch_dtype = dtype
        self.dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self.vector_bytes = self.dtype.itemsize * LANES
        self._halos = halos
        self._grids: dict[torch.Size, Grid] = {}
        self._arrays: list[Buffer] = []
        self._scratches: dict[tuple[Grid, int], Buffer] = {}
        self._constants: list[Array] = []
        self._data: dict[Value, Data] = {}
        self._rectified: dict[Value, Value] = {}
        self._positions: dict[tuple[Value | None, Grid, int, Pair, Grid], Positions] = {}
        self._renewals: list[Callable[[], None]] = []
        # By number of the region: its address and its owner in the present run. There is no region 0.
        self._starts = [0]
        self._held: dict[int, Array | Tensor] = {}

    def grid(self, value: Value) -> Grid:
        """Grid of a value's cotangents."""
        size = value.shape[2:]
        if size not in self._grids:
            self._grids[size] = Grid.of(size[0], size[1], self._halos.get((size[0], size[1]), 0))
        return self._grids[size]

    def same_rectified(self, value: Value) -> Value:
        """The first ReLU of the same value in the plan: all of them have equal outputs."""
        if value.producer is not None and value.producer.op in RELUS:
            return self._rectified.setdefault(value.producer.args[0], value)
        return value

    # --- changes between runs

    def renew(self, function: Callable[[], None]) -> None:
        """Call ``function`` whenever the forward pass has new values, after the functions added before."""
        self._renewals.append(function)

    def region(self) -> Address:
        """Start address of a new region."""
        self._starts.append(0)
        return Address((len(self._starts) - 1) << REGION_BITS)

    def load(self) -> None:
        """Get arrays for a run, and refill all data that depend on values of the forward pass."""
        for buffer in self._buffers():
            buffer.tensor = ARRAYS.take(self.n if buffer.samples else 1, buffer.channels, buffer.grid, self.torch_dtype)
            self._starts[buffer.address >> REGION_BITS] = buffer.tensor.data_ptr()
        for renewal in self._renewals:
            renewal()

    def link(self, table: Array) -> Callable[[], None]:
        """Make a function that replaces addresses of regions in a table of instructions by present addresses."""
        flat = table.reshape(-1)
        places = np.flatnonzero(flat >> REGION_BITS)
        regions, offsets = flat[places] >> REGION_BITS, flat[places] & (1 << REGION_BITS) - 1

        def write() -> None:
            flat[places] = np.array(self._starts, np.int64)[regions] + offsets

        return write

    def release(self) -> None:
        """Return the arrays to the pool, for the next run of any plan, and release the values of the forward pass."""
        for buffer in self._buffers():
            if "tensor" in vars(buffer):
                ARRAYS.give(buffer.tensor, buffer.grid)
                del buffer.tensor
        self._held.clear()

    def close(self) -> None:
        """``release``, and break reference cycles."""
        self.release()
        self._renewals.clear()

    @property
    def nbytes(self) -> int:
        """Memory of the plan itself, without that of a run, in bytes."""
        return sum(array.nbytes for array in self._constants)

    # --- arrays of cotangents

    def _buffers(self) -> Iterator[Buffer]:
        yield from self._arrays
        yield from self._scratches.values()

    def place_bases(self, bases: Iterable[Base]) -> None:
        """Give each base an array; reuse arrays of the same shape that are no longer needed."""
        free: dict[tuple[int, Grid], list[tuple[int, Buffer]]] = {}
        for base in bases:
            held = free.setdefault((base.channels, base.grid), [])
            index = next((i for i, (last, _) in enumerate(held) if last < base.created), None)
            if index is None:
                array = Buffer(base.channels, base.grid, True, self.region())
                self._arrays.append(array)
            else:
                array = held.pop(index)[1]
            held.append((base.last, array))
            base.array = array

    def scratch(self, grid: Grid, channels: int) -> Buffer:
        """A scratch array for data between two instructions, the same for all samples."""
        if (grid, channels) not in self._scratches:
            self._scratches[grid, channels] = Buffer(channels, grid, False, self.region())
        return self._scratches[grid, channels]

    def place(self, array: Buffer, grid: Grid, *, channel: int = 0, y: int = 0, x: int = 0) -> Place:
        """Location of pixel (y, x) of a channel. A scratch array is the same for all samples."""
        plane = grid.plane * self.vector_bytes
        start = array.address + channel * plane + (grid.first + y * grid.row + x) * self.vector_bytes
        return Place(Address(start), array.channels * plane if array.samples else 0, plane, grid.row * self.vector_bytes)

    def corner(self, array: Buffer, grid: Grid, *, channel: int = 0) -> Place:
        """Location of the border of a channel, the origin of positions and offsets of convolutions."""
        return self.place(array, grid, channel=channel, y=-grid.halo, x=-grid.halo)

    # --- other data of programs

    def keep(self, array: Array) -> Address:
        """Address of an array, which is kept alive by the plan."""
        self._constants.append(array)
        return address(array)

    def constant(self, array: Array) -> Address:
        """Address of a constant array, in the dtype of the cotangents."""
        return self.keep(np.ascontiguousarray(array, dtype=self.dtype))

    def scalars(self, array: Array) -> Address:
        """Address of an array that is refilled in each run, in the dtype of the cotangents."""
        copy = np.empty(array.shape, self.dtype)
        self.renew(lambda: np.copyto(copy, array, casting="same_kind"))
        return self.keep(copy)

    def scaled(self, array: Array, factor: float | Array) -> Array:
        """Product of a refilled array with a number or another refilled array."""
        product = np.empty(array.shape)

        def renew() -> None:
            np.multiply(array, factor, out=product)

        self.renew(renew)
        return product

    def made(self, count: int, make: Callable[[], Sequence[Array]]) -> list[Address]:
        """Addresses of ``count`` arrays made in each run."""
        addresses = [self.region() for _ in range(count)]
        numbers = [address >> REGION_BITS for address in addresses]

        def hold() -> None:
            for number, array in zip(numbers, make(), strict=True):
                self._held[number] = array
                self._starts[number] = address(array)

        self.renew(hold)
        return addresses

    def data(self, value: Value) -> Data:
        """A value of the forward pass."""
        if value not in self._data:
            start = self.region()
            number = start >> REGION_BITS

            def hold() -> None:
                data = value.data.contiguous()
                self._held[number] = data
                self._starts[number] = data.data_ptr()

            self.renew(hold)
            self._data[value] = Data(start, value.tensor[0].numel() * self.dtype.itemsize)
        return self._data[value]

    def positions(self, value: Value, rectified: bool, convolution: Convolution, remainders: Pair, grid: Grid) -> Positions:
        """Positions where ``value``, an input of a convolution, exchanges data with the output's ``grid``.

        For a rectified value the nonzero pixels, with their values; for other values all pixels, without values.
        """
        own, stride = self.grid(value), convolution.window.stride
        key = (value if rectified else None, own, stride, remainders, grid)
        if key not in self._positions:
            height, width = value.shape[2:]
            if rectified:

                def listed() -> tuple[Array, ...]:
                    images = value.data.contiguous().numpy().reshape(-1, height, width)
                    return passes.list_positions(
                        images, stride, *remainders, own.row, own.first, grid.row, grid.first, self.vector_bytes
                    )

                targets, sources, values, starts = self.made(4, listed)
                self._positions[key] = Positions(targets, sources, values, starts, dense=0)
            else:
                y, x = np.arange(remainders[0], height, stride)[:, None], np.arange(remainders[1], width, stride)
                places = own.first + y * own.row + x, grid.first + y // stride * grid.row + x // stride
                targets, sources = (self.keep((a.reshape(-1) * self.vector_bytes).astype(np.int32)) for a in places)
                self._positions[key] = Positions(targets, sources, NOWHERE, NOWHERE, dense=places[0].size)
        return self._positions[key]

    def regions(self) -> Iterator[Region]:
        """All regions by name, for listings of programs. The plan must be loaded."""
        for name, buffers in (("array", self._arrays), ("scratch", self._scratches.values())):
            for number, buffer in enumerate(buffers):
                yield Region(f"{name}{number}", buffer.address, buffer.tensor.nbytes, buffer.grid)
        for number, held in self._held.items():
            array = held.numpy() if isinstance(held, Tensor) else held
            yield Region("value", Address(number << REGION_BITS), array.nbytes, values=array)
        for array in self._constants:
            yield Region("constant", address(array), array.nbytes, values=array)
