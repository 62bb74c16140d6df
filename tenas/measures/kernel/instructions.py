"""Instructions of a program, one record type per operation, and their packing for compiled code.

Each works on one sample at a time. Arrays of cotangents consist of vectors; values of the forward pass and factors are scalars
of the same dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NewType, get_type_hints

import numpy as np

from tenas.measures.kernel.compiled import record
from tenas.measures.kernel.geometry import Array

# Address of memory that the caller of the program keeps alive; NOWHERE: no such memory.
Address = NewType("Address", int)
NOWHERE = Address(0)


class Place(NamedTuple):
    """A pixel of the first sample and channel in an array of cotangents, and the bytes to the next sample, channel and row."""

    address: Address
    sample: int
    plane: int
    row: int


class Images(NamedTuple):
    """Number of channels, rows and columns of an operation."""

    channels: int
    height: int
    width: int


class Data(NamedTuple):
    """A contiguous value of the forward pass, (n, C, H, W), and the stride in bytes to the next sample."""

    address: Address
    sample: int


NO_DATA = Data(NOWHERE, 0)


class Positions(NamedTuple):
    """Pixels as int32 differences of addresses, in the plane of a convolution's input (``targets``) and its output (``sources``).

    Either lists by sample and channel: that of channel c of sample j begins at ``starts[j * channels + c]``, aligned with
    ``values``. Or, if ``dense`` is not zero, the same ``dense`` pixels for all, with ``values`` by sample and channel.
    """

    targets: Address
    sources: Address
    values: Address
    starts: Address
    dense: int


class Zero(NamedTuple):
    """target = 0"""

    target: Place
    images: Images


class Combine(NamedTuple):
    """target (+)= gain[c] * source, plus shift[c] + slope[c] * data, or times share[y, x].

    ``accumulate``: 1 to add, 0 to store. ``shift`` and ``slope`` are of vectors.
    """

    target: Place
    source: Place
    images: Images
    accumulate: int
    gain: Address
    shift: Address = NOWHERE
    slope: Address = NOWHERE
    data: Data = NO_DATA
    share: Address = NOWHERE


class Mask(NamedTuple):
    """target = 0 where data, the output of a ReLU, is 0"""

    target: Place
    images: Images
    data: Data


class Gather(NamedTuple):
    """target[p] += sum over t of weights[c, t] * source[q + offsets[t]] for the positions (p, q): a convolution's transpose.

    Both positions are corners of borders. ``group`` channels of the target read the same planes of the source, the next ones
    the planes ``group_stride`` bytes further.
    """

    target: Place
    source: Place
    channels: int
    positions: Positions
    offsets: Address
    weights: Address
    taps: int
    group: int
    group_stride: int


class Box(NamedTuple):
    """target += the sum of source over 3 x 3 pixels: the transpose of a sum pooling"""

    target: Place
    source: Place
    images: Images


class Scatter(NamedTuple):
    """target[targets[j, c, y, x]] += source[c, y, x]: the transpose of a max pooling; ``images`` are those of the source"""

    target: Place
    source: Place
    images: Images
    targets: Address


class Sum(NamedTuple):
    """target[c] += sum of source[c]"""

    target: Address
    source: Place
    images: Images


class Dot(NamedTuple):
    """target[c] += sum over y, x of source[c, y, x] * data[c, y, x]"""

    target: Address
    source: Place
    images: Images
    data: Data


class Accumulate(NamedTuple):
    """target[c, t] += sum over positions q of values[q] * source[q + offsets[t]]: a convolution's weight gradient.

    ``channels``: of the convolution's input, with ``group`` and ``group_stride`` as in ``Gather``. A channel has
    ``padded_taps`` rows of the target, which are undefined beyond ``taps``. ``runs``: 1 if every three offsets are
    neighbours.
    """

    target: Address
    source: Place
    channels: int
    positions: Positions
    offsets: Address
    taps: int
    padded_taps: int
    runs: int
    group: int
    group_stride: int


Instruction = Zero | Combine | Mask | Gather | Box | Scatter | Sum | Dot | Accumulate
OPERATIONS: dict[type, int] = {
    Zero: record.ZERO,
    Combine: record.COMBINE,
    Mask: record.MASK,
    Gather: record.GATHER,
    Box: record.BOX,
    Scatter: record.SCATTER,
    Sum: record.SUM,
    Dot: record.DOT,
    Accumulate: record.ACCUMULATE,
}


def _columns(kind: type) -> tuple[slice | int, ...]:
    """Flatten a field: one column for a number, several for a record within the instruction."""
    result: list[slice | int] = []
    for name, hint in get_type_hints(kind).items():
        parts = getattr(hint, "_fields", None)
        if parts is None:
            result.append(record.FIELDS.index(name))
        else:
            first = record.FIELDS.index(name if name in record.FIELDS else parts[0])
            result.append(slice(first, first + len(parts)))
    return tuple(result)


# Columns of the fields of an instruction in a row of ``record.FIELDS``.
COLUMNS = {kind: _columns(kind) for kind in OPERATIONS}


def pack(instructions: Sequence[Instruction]) -> Array:
    """Pack instructions for compiled code: an array of ``record.RECORD``."""
    table = []
    for instruction in instructions:
        kind = type(instruction)
        row: Any = [0] * len(record.FIELDS)
        row[0] = OPERATIONS[kind]
        for column, value in zip(COLUMNS[kind], instruction, strict=True):
            row[column] = value
        table.append(row)
    return np.array(table, np.int64).reshape(len(table), len(record.FIELDS)).view(record.RECORD).reshape(-1)
