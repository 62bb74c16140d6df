"""From a tape to programs of the compiled kernels: the reverse pass on a CPU, a vector of cotangents at a time.

The cotangent of a value (n, C, H, W) is an array (n, C, H + 2 halo, W + 2 halo, lanes) with a border of zeros, so that
no kernel looks at edges. Most values don't get an array. Walking the tape backwards, each operator leaves with its inputs
a note of what it contributes, and a value

- that has one contribution which is another array, scaled, is that array (sums, averages, concatenations);
- else pulls all its contributions at once, sample by sample, while the sample is in cache: averages and skips as plain
  sums; convolutions and pooling as gathers at listed positions. Behind a ReLU only positions where it is active are
  listed, for all convolutions that read it: the others' cotangent is zero, for all lanes.

Right when a value has been pulled, the sums that need it are taken: sum g * patch for every convolution that ends in it,
over positions where the patch isn't zero. Batch normalisation follows in closed form from those sums (``normalise``):
the cotangent at its input, gain * g + shift + slope * z, is not stored either; whoever pulls it computes it a sample
at a time.

What has no kernel goes through the rules in plain torch (``ntk_rules``), with the layout changed on the way in and out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenas.measures.kernel.compiled import loops, operations, passes, vector
from tenas.measures.kernel.compiled import record as opcodes
from tenas.measures.kernel.compiled.record import RECORD as INSTRUCTION
from tenas.measures.ntk_reverse import empty_rows, parameter_columns, reverse_record, seed
from tenas.measures.ntk_rules import BATCH_NORMS, DIVISIONS, SUBTRACTIONS, BatchNorm
from tenas.measures.ntk_tape import Record, Tape, Value, aten

# Cotangents in a vector.
LANES = 8
# Bytes of arrays that are kept from one kernel to the next.
KEPT_BYTES = 2**28
# Samples whose products are summed in the network's own dtype before they are added up in float64.
SAMPLES = 16


class Grid(NamedTuple):
    """Where the pixels of an image lie in an array with a border: ``row`` and ``plane`` are places, ``first`` a place in it."""

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
    """What a convolution or a pooling does with places: its kernel, stride, padding and dilation, square or not."""

    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int

    def phases(self, axis: int) -> list[list[tuple[int, int]]]:
        """For an input coordinate q = stride * p + phase: the (tap, o) with which it contributes to output p + o."""
        result: list[list[tuple[int, int]]] = [[] for _ in range(self.stride)]
        for tap in reversed(range(self.kernel[axis])):
            for phase in range(self.stride):
                offset, rest = divmod(phase + self.padding[axis] - self.dilation * tap, self.stride)
                if rest == 0:
                    result[phase].append((tap, offset))
        return result


@functools.lru_cache(maxsize=1024)
def centre_of(window: Window) -> tuple[int, int] | None:
    """The tap that an output reads at its own place, of a window that keeps an image's size."""
    y, x = (k // 2 for k in window.kernel)
    same = window.stride == 1 and window.padding == (window.dilation * y, window.dilation * x)
    return (y, x) if same and all(k % 2 for k in window.kernel) else None


@functools.lru_cache(maxsize=1024)
def halo_of(window: Window, size: tuple[int, int], out: tuple[int, int]) -> int:
    """How far beyond outputs of size ``out`` inputs of ``size`` reach."""
    halo = 0
    for axis in (0, 1):
        for remainder, taps in enumerate(window.phases(axis)):
            if remainder < size[axis]:
                last = (size[axis] - 1 - remainder) // window.stride
                for _, offset in taps:
                    halo = max(halo, -offset, last + offset - (out[axis] - 1))
    return halo


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # several times faster than array.ctypes.data


def _zeros(*outer: int, grid: Grid, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*outer, grid.height + 2 * grid.halo, grid.row, LANES, dtype=dtype)


class Arrays:
    """Arrays of cotangents that are not in use: fresh memory from the system costs as much time as the work on it.

    Kernels don't write to borders, so those of an array that comes back are zero for the next one of the same shape.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.free: dict[tuple, list[Tensor]] = {}

    def take(self, n: int, channels: int, grid: Grid, dtype: torch.dtype) -> Tensor:
        held = self.free.get((n, channels, grid, dtype))
        return held.pop() if held else _zeros(n, channels, grid=grid, dtype=dtype)

    def give(self, array: Tensor, grid: Grid) -> None:
        if array.nbytes + sum(a.nbytes for held in self.free.values() for a in held) > self.most:
            self.free.clear()
        if array.nbytes <= self.most:
            self.free.setdefault((*array.shape[:2], grid, array.dtype), []).append(array)


class Phase(NamedTuple):
    """The part of a convolution that input pixels with these remainders of the stride take part in.

    ``offsets``: in bytes, from the output pixel at the quotients, in the order (channel of a group, row, column).
    """

    remainders: tuple[int, int]
    offsets: np.ndarray
    rows: list[int]
    columns: list[int]
    runs: bool


@functools.lru_cache(maxsize=1024)
def phases_of(window: Window, channels: int, size: tuple[int, int], grid: Grid, vector: int) -> list[Phase]:
    """The phases of a convolution to ``channels`` channels a group from images of a size; those without taps left out."""
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
    window: Window, shape: tuple[int, ...], channels: int, size: tuple[int, int], grid: Grid, vector: int
) -> tuple[np.ndarray, list[tuple[Phase, int, np.ndarray]]]:
    """Where the sums of g * patch go for a weight of a shape: the row of each of its elements, -1 for one without any.

    And for each phase where its rows start, and its offsets made up to what ``ACCUMULATE`` works on.
    """
    outer, each = shape[:2]
    groups = channels // each
    table = np.full((groups, outer // groups, *shape[1:]), -1, np.int64)
    phases, first = [], 0
    for phase in phases_of(window, outer // groups, size, grid, vector):
        taps = len(phase.offsets)
        padded = loops.padded(taps)
        offsets = np.concatenate([phase.offsets, np.zeros(padded - taps, np.int32)])
        numbers = first + np.arange(channels)[:, None] * padded + np.arange(taps)
        numbers = numbers.reshape(groups, each, outer // groups, len(phase.rows), len(phase.columns))
        table[:, :, :, np.array(phase.rows)[:, None], phase.columns] = numbers.transpose(0, 2, 1, 3, 4)
        phases.append((phase, first, offsets))
        first += channels * padded
    return table.reshape(shape), phases


@dataclasses.dataclass(eq=False)
class Base:
    """A value's cotangents in an array of their own, and the sums over the batch that are wanted of them.

    ``array``: (n, channels, height + 2 halo, width + 2 halo, lanes), used from step ``created`` to step ``last``.
    ``sums``: (rows, lanes) in float64, the first rows the plain sums of each channel, if a batch normalisation
    asks for them (``normalised``); ``part``: those of some samples.
    """

    channels: int
    grid: Grid
    created: int
    last: int = 0
    wants: list[Products | Dots] = dataclasses.field(default_factory=list)
    normalised: bool = False
    array: Tensor | None = None
    part: np.ndarray | None = None
    sums: np.ndarray | None = None

    def interior(self) -> Tensor:
        h = self.grid.halo
        return self.array[:, :, h : h + self.grid.height, h : h + self.grid.width]


@dataclasses.dataclass(eq=False)
class Products:
    """The sums of g * patch for one convolution: row ``rows[c, e]`` of the base's sums for weight element (c, e)."""

    channel: int
    convolution: Convolution
    rows: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class Dots:
    """The sums of g * z, z (n, C, H, W): rows ``row`` to ``row`` + C."""

    channel: int
    z: Value
    row: int = 0


@dataclasses.dataclass(eq=False)
class Cotangent:
    """gain * base + shift + slope * z: the cotangents of a value, in terms of an array. No shift: only scaled.

    ``channel`` is where the value's channels start in the base. ``gain`` (C,) doesn't depend on the lane, shift and slope
    (C, lanes) do. ``products``: of the convolution whose output the value is, if they have been summed.
    """

    base: Base
    channel: int
    gain: np.ndarray
    shift: np.ndarray | None = None
    slope: np.ndarray | None = None
    z: Value | None = None
    products: Products | None = None


@dataclasses.dataclass(eq=False)
class Dense:
    """A contribution that is a cotangent itself, from pixel (y, x) of the value on."""

    cotangent: Cotangent
    mask: Value | None = None
    y: int = 0
    x: int = 0


@dataclasses.dataclass(eq=False)
class Gathered:
    """A contribution through the transpose of a convolution or an average pooling (a weight of ones; ``share`` (h, w)
    is 1 / the number of pixels behind each average)."""

    cotangent: Cotangent
    convolution: Convolution
    mask: Value | None = None
    share: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class Scattered:
    """A contribution through the transpose of a max pooling: to where each maximum was."""

    cotangent: Cotangent
    indices: Tensor
    mask: Value | None = None


class FromTorch:
    """A contribution that the rules in plain torch leave under the value's name when the pass runs."""


@dataclasses.dataclass(eq=False)
class Convolution:
    """A convolution's input, output and geometry, weight (channels, channels / groups, height, width) and bias in float64."""

    x: Value
    out: Value
    window: Window
    groups: int
    weight: np.ndarray
    bias: np.ndarray

    def by_group(self, array: np.ndarray) -> np.ndarray:
        """An array of the weight's shape as (groups, channels of a group, input channels of a group, height, width)."""
        return array.reshape(self.groups, -1, *array.shape[1:])


Contribution = Dense | Gathered | Scattered | FromTorch
Step = Callable[[dict[Value, Tensor], int], None]
FIELDS = {name: index for index, name in enumerate(INSTRUCTION.names)}
ARRAYS = Arrays(KEPT_BYTES)
NO_TABLE = np.empty((0, 0))
NO_ROWS = np.empty((0, 0), np.int64)


class Plan:
    """The reverse pass of a tape for a vector of cotangents: planned once, run for each chunk of LANES samples."""

    def __init__(self, tape: Tape, logits: Value) -> None:
        self.tape = tape
        self.logits = logits
        self.n = len(logits.tensor)
        self.torch_dtype = logits.tensor.dtype
        self.dtype = np.dtype(np.float64 if self.torch_dtype == torch.float64 else np.float32)
        self.template = vector.template(self.dtype, LANES)
        self.size = self.dtype.itemsize * LANES
        self.columns = {parameter: columns for columns, parameter in parameter_columns(tape)}
        self.gradients = np.zeros((max(columns.stop for columns in self.columns.values()), LANES))
        self.steps: list[Step] = []
        self.bases: list[Base] = []
        self.programs: list[tuple[Base, list[Contribution], list[np.ndarray]]] = []
        self.contributions: dict[Value, list[Contribution]] = {logits: [FromTorch()]}
        self.halos = self._find_halos()
        self.grids: dict[torch.Size, Grid] = {}
        self.rectified: dict[Value, Value] = {}
        self.lists: dict[tuple, tuple[int, int, int, int, int]] = {}
        self.scratches: dict[tuple[Grid, int], Tensor] = {}
        self.kept: list[object] = []
        for record in reversed(tape.records):
            if any(output in self.contributions for output in record.outputs):
                rule = RULES.get(record.op)
                if rule is None or not self.fits(record) or not rule(self, record):
                    self._leave_to_torch(record)
        self._place_arrays()
        for base, contributions, program in self.programs:
            program.append(self._compile(base, contributions))

    def run(self) -> Tensor:
        """The gradients of all samples' sums of logits, a row each: (n, parameters)."""
        rows = empty_rows(self.tape, self.n)
        for start in range(0, self.n, LANES):
            stop = min(start + LANES, self.n)
            self.gradients.fill(0)
            cotangents = {self.logits: seed(self.logits.tensor, start, stop)}
            for step in self.steps:
                step(cotangents, stop - start)
            rows[start:stop] = torch.from_numpy(self.gradients[:, : stop - start].T)
            for parameter, columns in self.columns.items():
                if parameter in cotangents:
                    rows[start:stop, columns] += cotangents[parameter].flatten(1)
        return rows

    def close(self) -> None:
        """Give the arrays back for the next plan, and break the cycles that would keep everything else until collected."""
        for base in {id(base.array): base for base in self.bases}.values():
            ARRAYS.give(base.array, base.grid)
        self.steps.clear()
        self.bases.clear()
        self.programs.clear()
        self.contributions.clear()

    # Walking the tape.

    def fits(self, record: Record) -> bool:
        """Whether the record is of batches of images, in the dtype of the logits."""
        if "fits" not in record.cache:
            images = [v.tensor for v in (record.outputs[0], *record.inputs) if v is not None and v.tensor.ndim == 4]
            out = record.outputs[0].tensor
            record.cache["fits"] = (
                out.ndim == 4 and len(out) == self.n and all(t.dtype == self.torch_dtype and t.numel() for t in images)
            )
        return record.cache["fits"]

    def _find_halos(self) -> dict[tuple[int, int], int]:
        """The border that images of each size need, so that whatever reads their cotangents stays within the array."""
        halos: dict[tuple[int, int], int] = {}
        for record in self.tape.records:
            window = window_at(record)
            if window is not None:
                out = record.outputs[0].shape[2:]
                halos[out] = max(halos.get(out, 0), halo_of(window, record.args[0].shape[2:], out))
        return halos

    def grid(self, value: Value) -> Grid:
        size = value.shape[2:]
        if size not in self.grids:
            self.grids[size] = Grid.of(*size, self.halos.get(size, 0))
        return self.grids[size]

    def add(self, value: Value, contribution: Contribution) -> None:
        self.contributions.setdefault(value, []).append(contribution)

    def same_rectified(self, value: Value) -> Value:
        """The first of all ReLUs of the same value that the plan has met: they hold the same."""
        if value.producer is not None and value.producer.op in RELUS:
            return self.rectified.setdefault(value.producer.args[0], value)
        return value

    def cotangent(self, value: Value, *, plain: bool = False) -> Cotangent:
        """The cotangent of a value all of whose consumers have been met. ``plain``: without shift and slope."""
        contributions = self.contributions[value]
        if len(contributions) == 1 and isinstance(only := contributions[0], Dense):
            whole = only.mask is None and only.cotangent.base.grid == self.grid(value)
            if whole and not (plain and only.cotangent.shift is not None):
                return only.cotangent
        if any(isinstance(c, FromTorch) for c in contributions):
            base = self._new_base(value)
            self._pull(base, [], arriving=value)
            rest = [c for c in contributions if not isinstance(c, FromTorch)]
            if rest:
                contributions = [*rest, Dense(Cotangent(base, 0, np.ones(base.channels)))]
                base = self._new_base(value)
                self._pull(base, contributions)
        else:
            base = self._new_base(value)
            self._pull(base, contributions)
        cotangent = Cotangent(base, 0, np.ones(base.channels))
        self.contributions[value] = [Dense(cotangent)]
        return cotangent

    def _new_base(self, value: Value) -> Base:
        base = Base(value.shape[1], self.grid(value), len(self.steps), len(self.steps))
        self.bases.append(base)
        return base

    def _pull(self, base: Base, contributions: list[Contribution], arriving: Value | None = None) -> None:
        """A step that fills a base, from contributions or from the value's cotangent in plain torch, and takes its sums."""
        for contribution in contributions:
            contribution.cotangent.base.last = len(self.steps)
        program: list[np.ndarray] = []
        self.programs.append((base, contributions, program))

        def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
            if arriving is not None:
                g = cotangents.pop(arriving, None)
                if g is None or lanes < LANES:
                    base.interior().zero_()
                if g is not None:
                    base.interior()[..., :lanes] = g.permute(1, 2, 3, 4, 0)
            if base.wants:
                base.sums.fill(0)
            for first in range(0, self.n, SAMPLES):
                base.part.fill(0)
                operations.run(self.template, program[0], first, min(first + SAMPLES, self.n))
                if base.wants:
                    base.sums += base.part

        self.steps.append(step)

    def _leave_to_torch(self, record: Record) -> None:
        for output in record.outputs:
            if output in self.contributions and not all(isinstance(c, FromTorch) for c in self.contributions[output]):
                self._to_torch(output)
        self.steps.append(lambda cotangents, lanes: reverse_record(record, cotangents))
        for value in record.inputs:
            if value.active and value not in self.columns:
                contributions = self.contributions.setdefault(value, [])
                if not any(isinstance(c, FromTorch) for c in contributions):
                    contributions.append(FromTorch())

    def _to_torch(self, value: Value) -> None:
        cotangent = self.cotangent(value, plain=True)
        base, channel = cotangent.base, cotangent.channel
        base.last = len(self.steps)
        gain = torch.from_numpy(cotangent.gain).to(self.torch_dtype).view(-1, 1, 1)

        def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
            g = base.interior()[:, channel : channel + len(gain), ..., :lanes]
            cotangents[value] = g.permute(4, 0, 1, 2, 3) * gain

        self.steps.append(step)

    # Turning contributions into programs.

    def _place_arrays(self) -> None:
        """Give each base an array; one of the same shape that is no longer used is used again."""
        free: dict[tuple[int, Grid], list[tuple[int, Tensor]]] = {}
        for base in self.bases:
            held = free.setdefault((base.channels, base.grid), [])
            index = next((i for i, (last, _) in enumerate(held) if last < base.created), None)
            array = ARRAYS.take(self.n, base.channels, base.grid, self.torch_dtype) if index is None else held.pop(index)[1]
            held.append((base.last, array))
            base.array = array

    def _keep(self, array: np.ndarray) -> int:
        """The address of an array, which is kept for as long as the plan."""
        self.kept.append(array)
        return address(array)

    def _vector(self, array: np.ndarray) -> int:
        return self._keep(np.ascontiguousarray(array, dtype=self.dtype))

    def _data(self, value: Value) -> int:
        data = value.data.contiguous()
        self.kept.append(data)
        return data.data_ptr()

    def _scratch(self, grid: Grid, channels: int) -> Tensor:
        if (grid, channels) not in self.scratches:
            self.scratches[grid, channels] = _zeros(channels, grid=grid, dtype=self.torch_dtype)
        return self.scratches[grid, channels]

    def _at(self, end: str, array: Tensor, grid: Grid, *, channel: int = 0, y: int = 0, x: int = 0) -> dict[str, int]:
        """The fields that tell a program where pixel (y, x) of an array is. A scratch array is the same for all samples."""
        plane = grid.plane * self.size
        return {
            end: array.data_ptr() + channel * plane + (grid.first + y * grid.row + x) * self.size,
            f"{end}_sample": array.shape[1] * plane if array.ndim == 5 else 0,
            f"{end}_plane": plane,
            f"{end}_row": grid.row * self.size,
        }

    def _compile(self, base: Base, contributions: list[Contribution]) -> np.ndarray:
        """The program that fills a base and takes its sums.

        What a mask works on comes first. A gather doesn't need it: it lists only the positions that the mask leaves.
        """
        program: list[dict[str, int]] = []
        gathered = [c for c in contributions if isinstance(c, Gathered)]
        others = [c for c in contributions if not isinstance(c, Gathered)]
        others.sort(key=lambda c: (c.mask is None, isinstance(c, Scattered)))
        masks = [c.mask for c in others if c.mask is not None]
        whole = {**self._at("target", base.array, base.grid), **self._images(base.channels, base.grid)}
        stored = bool(others) and isinstance(others[0], Dense) and others[0].cotangent.base.grid[:2] == base.grid[:2]
        if contributions and not stored:
            program.append({"op": opcodes.ZERO, **whole})
        for index, contribution in enumerate(others):
            if isinstance(contribution, Dense):
                target = self._at("target", base.array, base.grid, y=contribution.y, x=contribution.x)
                accumulate = index > 0 or not stored
                program.append(self._combine(target, contribution.cotangent, accumulate=accumulate))
            else:
                program += self._scatter(base, contribution)
            if index + 1 == len(masks):
                program.append({"op": opcodes.MASK, **whole, **self._images_data(masks[0])})
        self._compile_gathered(program, base, gathered)
        self._compile_sums(program, base)
        table = []
        for step in program:
            row = [0] * len(FIELDS)
            for field, value in step.items():
                row[FIELDS[field]] = value
            table.append(row)
        return np.array(table, np.int64).reshape(len(table), len(FIELDS)).view(INSTRUCTION).reshape(-1)

    def _images_data(self, value: Value) -> dict[str, int]:
        sample = value.tensor[0].numel() * self.dtype.itemsize
        return {"data": self._data(value), "data_sample": sample}

    def _images(self, channels: int, grid: Grid) -> dict[str, int]:
        return {"channels": channels, "height": grid.height, "width": grid.width}

    def _combine(self, target: dict[str, int], cotangent: Cotangent, *, accumulate: bool) -> dict[str, int]:
        """The instruction that adds a cotangent to an array or stores it there."""
        step = {
            "op": opcodes.COMBINE,
            **target,
            **self._at("source", cotangent.base.array, cotangent.base.grid, channel=cotangent.channel),
            **self._images(len(cotangent.gain), cotangent.base.grid),
            "accumulate": int(accumulate),
            "gain": self._vector(cotangent.gain),
        }
        if cotangent.shift is not None:
            step["shift"] = address(cotangent.shift)
            step["slope"] = address(cotangent.slope)
            step |= self._images_data(cotangent.z)
        return step

    def _compile_gathered(self, program: list[dict[str, int]], base: Base, contributions: list[Gathered]) -> None:
        """Gathers, merged where that is one pass instead of several.

        Convolutions between the same two values differ only in their taps. Poolings of one kind are summed before they are
        transposed, which is linear.
        """
        merged: dict[tuple, list[Gathered]] = {}
        for contribution in contributions:
            convolution, cotangent = contribution.convolution, contribution.cotangent
            grid = cotangent.base.grid
            if contribution.share is not None:
                key = (convolution.window, grid, contribution.mask, contribution.share.tobytes())
            elif convolution.groups == convolution.window.stride == 1:
                key = (cotangent.base, grid, contribution.mask, cotangent.shift is None)
            else:
                key = (contribution,)
            merged.setdefault(key, []).append(contribution)
        for group in merged.values():
            if group[0].share is not None:
                self._compile_poolings(program, base, group)
            else:
                self._compile_convolutions(program, base, group)

    def _compile_poolings(self, program: list[dict[str, int]], base: Base, group: list[Gathered]) -> None:
        first = group[0]
        grid = first.cotangent.base.grid
        array = self._scratch(grid, base.channels)
        target = self._at("target", array, grid)
        plain = all(contribution.cotangent.shift is None for contribution in group)
        share = {"share": self._vector(first.share)}
        for contribution in group:
            step = self._combine(target, contribution.cotangent, accumulate=contribution is not first)
            program.append({**step, **share} if plain else step)
        if not plain:
            ones = Cotangent(first.cotangent.base, 0, np.ones(base.channels))
            step = self._combine(target, ones, accumulate=False)
            program.append({**step, **self._at("source", array, grid), **share})
        if first.mask is None and first.convolution.window == Window((3, 3), 1, (1, 1), 1):
            places = {**self._at("target", base.array, base.grid), **self._at("source", array, grid)}
            program.append({"op": opcodes.BOX, **places, **self._images(base.channels, base.grid)})
        else:
            program += self._gathers(base, [first], [first.convolution.weight], array, [0])

    def _compile_convolutions(self, program: list[dict[str, int]], base: Base, group: list[Gathered]) -> None:
        cotangent = group[0].cotangent
        weights = [contribution.convolution.weight for contribution in group]
        if cotangent.shift is None:
            weights = [c.convolution.weight * c.cotangent.gain[:, None, None, None] for c in group]
            array, channels = cotangent.base.array, [c.cotangent.channel for c in group]
        else:
            grid = cotangent.base.grid
            starts = np.cumsum([0, *(len(weight) for weight in weights)]).tolist()
            channels = starts[:-1]
            array = self._scratch(grid, starts[-1])
            for contribution, channel in zip(group, channels, strict=True):
                target = self._at("target", array, grid, channel=channel)
                program.append(self._combine(target, contribution.cotangent, accumulate=False))
        program += self._gathers(base, group, weights, array, channels)

    def _gathers(
        self, base: Base, group: list[Gathered], weights: list[np.ndarray], array: Tensor, channels: list[int]
    ) -> list[dict[str, int]]:
        """The instructions that gather from the planes of ``array`` from ``channels`` on: one for each phase of the stride.

        More than one contribution only without groups and stride, when they differ just in their taps.
        """
        first = group[0]
        grid = first.cotangent.base.grid
        groups = first.convolution.groups
        places = {**self._at("target", base.array, base.grid), **self._at("source", array, grid)}
        places["target"] -= base.grid.first * self.size
        places["source"] -= grid.first * self.size
        parts: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        for contribution, weight, channel in zip(group, weights, channels, strict=True):
            for phase in self._phases(contribution.convolution, grid):
                taps = contribution.convolution.by_group(weight)[:, :, :, phase.rows][..., phase.columns]
                taps = taps.transpose(0, 2, 1, 3, 4).reshape(base.channels, -1)
                offsets = phase.offsets + channel * grid.plane * self.size
                parts.setdefault(phase.remainders, []).append((offsets, taps))
        steps = []
        for remainders, pieces in parts.items():
            offsets = np.concatenate([offsets for offsets, _ in pieces]).astype(np.int32)
            value = first.mask or first.convolution.x
            steps.append(
                {
                    "op": opcodes.GATHER,
                    **places,
                    "channels": base.channels,
                    **self._lists(value, first.mask is not None, first.convolution, remainders, grid),
                    "offsets": self._keep(offsets),
                    "weights": self._vector(np.concatenate([taps for _, taps in pieces], axis=1)),
                    "taps": len(offsets),
                    "group": base.channels // groups,
                    "group_stride": len(weights[0]) // groups * grid.plane * self.size,
                }
            )
        return steps

    def _phases(self, convolution: Convolution, grid: Grid) -> list[Phase]:
        channels = len(convolution.weight) // convolution.groups
        return phases_of(convolution.window, channels, tuple(convolution.x.shape[2:]), grid, self.size)

    def _lists(
        self, value: Value, rectified: bool, convolution: Convolution, remainders: tuple[int, int], grid: Grid
    ) -> dict[str, int]:
        """Where ``value``, an input of a convolution, has something to send to or take from the output's ``grid``."""
        own, stride = self.grid(value), convolution.window.stride
        key = (value if rectified else None, own, stride, remainders, grid)
        if key not in self.lists:
            height, width = value.shape[2:]
            if rectified:
                images = value.data.contiguous().numpy().reshape(-1, height, width)
                arrays = passes.list_positions(
                    images, stride, *remainders, own.row, own.first, grid.row, grid.first, self.size
                )  # fmt: skip
            else:
                y, x = np.arange(remainders[0], height, stride)[:, None], np.arange(remainders[1], width, stride)
                targets = own.first + y * own.row + x
                sources = grid.first + y // stride * grid.row + x // stride
                arrays = tuple((a.reshape(-1) * self.size).astype(np.int32) for a in (targets, sources))
            fields = dict(zip(("targets", "sources", "values", "starts"), map(self._keep, arrays), strict=False))
            self.lists[key] = {**fields, "dense": 0 if rectified else len(arrays[0])}
        return self.lists[key]

    def _scatter(self, base: Base, contribution: Scattered) -> list[dict[str, int]]:
        grid = contribution.cotangent.base.grid
        array = self._scratch(grid, base.channels)
        y, x = np.divmod(contribution.indices.numpy(), base.grid.width)
        positions = (y * base.grid.row + x) * self.size
        return [
            self._combine(self._at("target", array, grid), contribution.cotangent, accumulate=False),
            {
                "op": opcodes.SCATTER,
                **self._at("target", base.array, base.grid),
                **self._at("source", array, grid),
                **self._images(base.channels, grid),
                "targets": self._keep(positions.astype(np.int32)),
            },
        ]

    def _compile_sums(self, program: list[dict[str, int]], base: Base) -> None:
        # After the sums of the channels, a row that stays zero: that of taps which never meet a pixel.
        rows = base.channels + 1
        steps = []
        done: list[Products] = []
        # Large kernels first: the products of a 1x1 convolution are among those of a larger one with the same input.
        for want in sorted(base.wants, key=lambda w: -w.convolution.weight[0, 0].size if isinstance(w, Products) else 0):
            if isinstance(want, Dots):
                want.row = rows
                channels = want.z.shape[1]
                rows += channels
                steps.append(
                    {
                        "op": opcodes.DOT,
                        "target": want.row * self.size,
                        **self._at("source", base.array, base.grid, channel=want.channel),
                        **self._images(channels, base.grid),
                        **self._images_data(want.z),
                    }
                )
            elif not any(self._share_products(want, other) for other in done):
                done.append(want)
                rows = self._products(steps, base, want, rows)
        base.part = np.zeros((rows if base.wants else 0, LANES), self.dtype)
        base.sums = np.zeros(base.part.shape)
        if base.wants:
            target = address(base.part)
            source = self._at("source", base.array, base.grid)
            if base.normalised:
                program.append({"op": opcodes.SUM, "target": target, **source, **self._images(base.channels, base.grid)})
            program += [{**step, "target": target + step["target"]} for step in steps]

    def _share_products(self, want: Products, other: Products) -> bool:
        """Whether ``other`` has the sums that ``want`` asks for, and if so, in which rows."""
        a, b = want.convolution, other.convolution
        if want.channel != other.channel or self.same_rectified(a.x) is not self.same_rectified(b.x):
            return False
        centre = centre_of(b.window)
        if (
            centre is None
            or centre_of(a.window) is None
            or a.weight.shape[2:] not in ((1, 1), b.weight.shape[2:])
            or (a.weight.shape[2:] == b.weight.shape[2:] and a.window != b.window)
            or a.groups != b.groups
            or a.weight.shape[:2] != b.weight.shape[:2]
        ):
            return False
        y, x = centre
        want.rows = other.rows if a.weight.shape == b.weight.shape else other.rows[:, :, y : y + 1, x : x + 1]
        return True

    def _products(self, steps: list[dict[str, int]], base: Base, want: Products, first_row: int) -> int:
        """Add the instructions that sum g * patch for a convolution. Returns the first row that is free after them."""
        convolution, grid = want.convolution, base.grid
        x = self.same_rectified(convolution.x)
        rectified = x.producer is not None and x.producer.op in RELUS
        channels, groups = x.shape[1], convolution.groups
        table, phases = products_of(
            convolution.window, convolution.weight.shape, channels, tuple(x.shape[2:]), grid, self.size
        )  # fmt: skip
        source = self._at("source", base.array, grid, channel=want.channel)
        source["source"] -= grid.first * self.size
        for phase, first, offsets in phases:
            lists = self._lists(x, rectified, convolution, phase.remainders, grid)
            if not rectified:
                (y, u), stride = phase.remainders, convolution.window.stride
                lists = {**lists, "values": self._vector(x.data[:, :, y::stride, u::stride].numpy())}
            steps.append(
                {
                    "op": opcodes.ACCUMULATE,
                    "target": (first_row + first) * self.size,
                    **source,
                    "channels": channels,
                    **lists,
                    "offsets": self._keep(offsets),
                    "taps": len(phase.offsets),
                    "padded_taps": len(offsets),
                    "runs": int(phase.runs),
                    "group": channels // groups,
                    "group_stride": len(table) // groups * grid.plane * self.size,
                }
            )
        want.rows = np.where(table < 0, base.channels, table + first_row)
        return first_row + sum(channels * len(offsets) for _, _, offsets in phases)


# The rules: each takes the cotangent of a record's output and adds contributions to its inputs. False: leave it to torch.


def _batch_norm(plan: Plan, record: Record) -> bool:
    norm = BatchNorm(record)
    bias = record.args[2]
    if any(output in plan.contributions for output in record.outputs[1:]) or (bias is not None and bias.active):
        return False
    if norm.weight is not None and norm.weight.active and norm.weight not in plan.columns:
        return False
    cotangent = plan.cotangent(record.outputs[0], plain=True)
    base, scale = cotangent.base, cotangent.gain
    convolution = None
    if len(norm.z.uses) == 1 and norm.z.producer is not None:
        convolution = _convolution_of(plan, norm.z.producer)
    want = Dots(cotangent.channel, norm.z) if convolution is None else Products(cotangent.channel, convolution)
    base.wants.append(want)
    base.normalised = True
    mean, inverse, gain = (t.numpy().astype(np.float64) for t in (norm.mean, norm.inverse_deviation, norm.gain()))
    gain = gain * scale
    shift, slope = np.zeros((2, len(gain), LANES), plan.dtype) if norm.coupled else (None, None)
    gradient = plan.gradients[plan.columns[norm.weight]] if norm.weight in plan.columns else NO_TABLE
    weight = NO_TABLE if convolution is None else convolution.weight.reshape(len(gain), -1)
    offset = np.zeros(len(gain)) if convolution is None else convolution.bias
    unused = np.zeros((0, LANES), plan.dtype)

    def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
        rows = NO_ROWS if convolution is None else want.rows.reshape(weight.shape)
        passes.normalise(
            base.sums, cotangent.channel, 0 if convolution else want.row, rows, weight, offset, mean, inverse, gain,
            norm.count, norm.coupled, unused if shift is None else shift, unused if slope is None else slope, gradient, scale,
        )  # fmt: skip

    plan.steps.append(step)
    if norm.z.active:
        products = None if convolution is None else want
        z = norm.z if norm.coupled else None
        plan.add(norm.z, Dense(Cotangent(base, cotangent.channel, gain, shift, slope, z, products)))
    return True


def _convolution_of(plan: Plan, record: Record) -> Convolution | None:
    """The record as a convolution that has a kernel, if it is one."""
    if record.op is not aten.convolution.default:
        return None
    if "convolution" not in record.cache:
        x, weight, bias, *_, groups = record.args
        window = window_at(record)
        fits = (
            window is not None
            and plan.fits(record)
            and (weight in plan.columns or not weight.active)
            and not (bias is not None and bias.active)
        )
        if fits:
            table = weight.data.numpy().astype(np.float64)
            offset = np.zeros(len(table)) if bias is None else bias.data.numpy().astype(np.float64)
            record.cache["convolution"] = Convolution(x, record.outputs[0], window, groups, table, offset)
        else:
            record.cache["convolution"] = None
    return record.cache["convolution"]


def _convolution(plan: Plan, record: Record) -> bool:
    convolution = _convolution_of(plan, record)
    if convolution is None:
        return False
    x, weight = record.args[:2]
    cotangent = plan.cotangent(convolution.out)
    products = cotangent.products
    if products is None or products.convolution is not convolution:
        cotangent = plan.cotangent(convolution.out, plain=True)
        if weight.active:
            products = Products(cotangent.channel, convolution)
            cotangent.base.wants.append(products)
    if weight.active:
        table = convolution.weight.reshape(len(convolution.weight), -1)
        gradient = plan.gradients[plan.columns[weight]].reshape(*table.shape, LANES)
        patches, outer = NO_TABLE, NO_TABLE
        shift, slope = cotangent.shift, cotangent.slope
        if shift is None:
            shift = slope = np.zeros((0, LANES), plan.dtype)
        else:
            patches, outer = _forward_products(plan, convolution)

        def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
            rows = products.rows.reshape(table.shape)
            passes.weight_gradient(cotangent.base.sums, rows, cotangent.gain, shift, slope, patches, outer, gradient)

        plan.steps.append(step)
    if x.active:
        plan.add(x, Gathered(cotangent, convolution))
    return True


def _forward_products(plan: Plan, convolution: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """The sums over the batch of patch and of z * patch, for a convolution's output z: (channels, elements) each."""
    window = convolution.window
    z, x = (value.data.contiguous().numpy() for value in (convolution.out, convolution.x))
    patches, products = passes.forward_products(
        plan.template, z, x, convolution.groups, window.stride, window.kernel, window.padding, window.dilation
    )
    return patches.reshape(len(patches), -1), products.reshape(len(products), -1)


def _relu(plan: Plan, record: Record) -> bool:
    out = record.outputs[0]
    if any(isinstance(c, FromTorch) or c.mask is not None for c in plan.contributions[out]):
        contributions: list[Contribution] = [Dense(plan.cotangent(out))]
    else:
        contributions = plan.contributions[out]
    mask = plan.same_rectified(out)
    for contribution in contributions:
        plan.add(record.args[0], dataclasses.replace(contribution, mask=mask))
    return True


def _scaled(cotangent: Cotangent, factor: float) -> Cotangent:
    return Cotangent(cotangent.base, cotangent.channel, cotangent.gain * factor)


def _add(plan: Plan, record: Record) -> bool:
    first, second = record.args[:2]
    out = record.outputs[0]
    alpha = record.kwargs.get("alpha", 1) * (-1 if record.op in SUBTRACTIONS else 1)
    terms = [(v, f) for v, f in ((first, 1), (second, alpha)) if isinstance(v, Value) and v.active]
    if any(value.shape != out.shape for value, _ in terms):
        return False
    cotangent = plan.cotangent(out, plain=True)
    for value, factor in terms:
        plan.add(value, Dense(_scaled(cotangent, factor)))
    return True


def _scale(plan: Plan, record: Record) -> bool:
    first, second = record.args[:2]
    if isinstance(second, Value):
        if second.active or second.tensor.numel() != 1:
            return False
        second = second.data.item()
    if record.kwargs or first.shape != record.outputs[0].shape:
        return False
    cotangent = plan.cotangent(record.outputs[0], plain=True)
    plan.add(first, Dense(_scaled(cotangent, 1 / second if record.op in DIVISIONS else second)))
    return True


def _cat(plan: Plan, record: Record) -> bool:
    parts = record.args[0]
    if len(record.args) < 2 or record.args[1] % 4 != 1 or any(part.tensor.ndim != 4 for part in parts):
        return False
    cotangent = plan.cotangent(record.outputs[0], plain=True)
    start = 0
    for part in parts:
        stop = start + part.shape[1]
        if part.active:
            piece = Cotangent(cotangent.base, cotangent.channel + start, cotangent.gain[start:stop])
            plan.add(part, Dense(piece))
        start = stop
    return True


def _slice(plan: Plan, record: Record) -> bool:
    x, dim, start, _, step = (*record.args, *(0, None, None, 1)[len(record.args) - 1 :])
    dim %= 4
    if step != 1 or (dim < 2 and record.outputs[0].shape != x.shape):
        return False
    start = start or 0
    start = max(0, start + x.shape[dim]) if start < 0 else start
    cotangent = plan.cotangent(record.outputs[0], plain=True)
    plan.add(x, Dense(cotangent, y=start if dim == 2 else 0, x=start if dim == 3 else 0))
    return True


def _average_pool(plan: Plan, record: Record) -> bool:
    x, out = record.args[0], record.outputs[0]
    window = window_at(record)
    if window is None:
        return False
    channels = x.shape[1]
    pooling = Convolution(x, out, window, channels, np.ones((channels, 1, *window.kernel)), np.zeros(channels))
    share = average_share(window, x.shape[2:], *record.args[1:])
    plan.add(x, Gathered(plan.cotangent(out), pooling, share=share))
    return True


def _max_pool(plan: Plan, record: Record) -> bool:
    out, indices = record.outputs
    plan.add(record.args[0], Scattered(plan.cotangent(out), indices.data))
    return True


def _pair(setting: list[int]) -> tuple[int, int]:
    return (setting[0], setting[-1])


def window_of(
    ndim: int, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], transposed: bool, *_: object
) -> Window | None:
    """The window of a convolution as torch's operator gives it; None where it is not of images, or transposed, or skewed."""
    if ndim != 4 or transposed or len(set(stride)) > 1 or len(set(dilation)) > 1:
        return None
    return Window(_pair(kernel), stride[0], _pair(padding), dilation[0])


AVERAGE_DEFAULTS = ([], [0], False, True, None)


def average_window(ndim: int, kernel: list[int], *settings: Any) -> Window | None:
    """The window of an average pooling as torch's operator gives it; None where its output is more than whole windows."""
    stride, padding, ceil, _, divisor = (*settings, *AVERAGE_DEFAULTS[len(settings) :])
    stride = stride or kernel
    if ndim != 4 or ceil or divisor is not None or len(set(stride)) > 1:
        return None
    return Window(_pair(kernel), stride[0], _pair(padding), 1)


def average_share(window: Window, size: tuple[int, int], kernel: list[int], *settings: Any) -> np.ndarray:
    """1 / the number of pixels that each output of an average pooling is the average of."""
    *_, include_padding, _ = (*settings, *AVERAGE_DEFAULTS[len(settings) :])
    return _share_of(window, tuple(size), include_padding)


@functools.lru_cache(maxsize=1024)
def _share_of(window: Window, size: tuple[int, int], include_padding: bool) -> np.ndarray:
    counts = []
    for axis in (0, 1):
        out = (size[axis] + 2 * window.padding[axis] - window.kernel[axis]) // window.stride + 1
        start = np.arange(out) * window.stride - window.padding[axis]
        stop = start + window.kernel[axis]
        counts.append(stop - start if include_padding else np.minimum(stop, size[axis]) - np.maximum(start, 0))
    return 1 / np.outer(*counts)


WINDOWS: dict[object, Callable[[Record], Window | None]] = {
    aten.convolution.default: lambda record: window_of(record.args[0].tensor.ndim, record.args[1].shape[2:], *record.args[3:]),
    aten.avg_pool2d.default: lambda record: average_window(record.args[0].tensor.ndim, *record.args[1:]),
}


def window_at(record: Record) -> Window | None:
    """The window of a convolution or an average pooling that there are kernels for."""
    if record.op not in WINDOWS:
        return None
    if "window" not in record.cache:
        record.cache["window"] = WINDOWS[record.op](record)
    return record.cache["window"]


RELUS = {aten.relu.default, aten.relu_.default}
RULES: dict[object, Callable[[Plan, Record], bool]] = {
    aten.convolution.default: _convolution,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(RELUS, _relu),
    **dict.fromkeys([aten.add.Tensor, aten.add_.Tensor, *SUBTRACTIONS], _add),
    **dict.fromkeys([aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Scalar, *DIVISIONS], _scale),
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    aten.avg_pool2d.default: _average_pool,
    aten.max_pool2d_with_indices.default: _max_pool,
}
