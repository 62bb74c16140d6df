"""Instructions for the requested sums of a base over the batch."""

from __future__ import annotations

import numpy as np

from tenas.measures.kernel.cotangents import Base, Dots, Products, images_of
from tenas.measures.kernel.geometry import centre_of, products_of
from tenas.measures.kernel.instructions import Accumulate, Address, Dot, Instruction, Sum
from tenas.measures.kernel.workspace import LANES, Workspace, address
from tenas.measures.ntk_rules import RELUS
from tenas.measures.ntk_tape import Value


def sums_of(workspace: Workspace, base: Base) -> list[Instruction]:
    # After the sums of the channels, a row of zeros for taps that never meet a pixel.
    rows = base.channels + 1
    steps: list[Dot | Accumulate] = []
    done: list[Products] = []
    # Large kernels first: the products of a 1x1 convolution are among those of a larger one with the same input.
    for want in sorted(base.wants, key=lambda w: -w.convolution.weight[0, 0].size if isinstance(w, Products) else 0):
        if isinstance(want, Dots):
            want.row = rows
            source = workspace.place(base.array, base.grid, channel=want.channel)
            images = images_of(want.z.shape[1], base.grid)
            steps.append(Dot(Address(rows * workspace.vector_bytes), source, images, workspace.data(want.z)))
            rows += images.channels
        elif not any(_share_products(workspace, want, other) for other in done):
            done.append(want)
            rows = _products(workspace, steps, base, want, rows)
    base.part = np.zeros((rows if base.wants else 0, LANES), workspace.dtype)
    base.sums = np.zeros(base.part.shape)
    start = address(base.part)
    program: list[Instruction] = []
    if base.normalised:
        program.append(Sum(start, workspace.place(base.array, base.grid), images_of(base.channels, base.grid)))
    return program + [step._replace(target=Address(start + step.target)) for step in steps]


def _share_products(workspace: Workspace, want: Products, other: Products) -> bool:
    """Whether ``other`` has the sums requested by ``want``; if so, set their rows."""
    a, b = want.convolution, other.convolution
    if want.channel != other.channel or workspace.same_rectified(a.x) is not workspace.same_rectified(b.x):
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


def _pixels(workspace: Workspace, x: Value, y: int, u: int, stride: int) -> Address:
    """Every ``stride``th pixel of a value's images, starting at (y, u)."""
    (address,) = workspace.made(
        1, lambda: [np.ascontiguousarray(x.data[:, :, y::stride, u::stride].numpy(), dtype=workspace.dtype)]
    )
    return address


def _products(workspace: Workspace, steps: list[Dot | Accumulate], base: Base, want: Products, first_row: int) -> int:
    """Add the instructions that sum g * patch for a convolution. Returns the next free row."""
    convolution, grid = want.convolution, base.grid
    x = workspace.same_rectified(convolution.x)
    rectified = x.producer is not None and x.producer.op in RELUS
    channels, groups = x.shape[1], convolution.groups
    vector = workspace.vector_bytes
    table, phases = products_of(
        convolution.window, convolution.weight.shape, channels, (x.shape[2], x.shape[3]), grid, vector
    )  # fmt: skip
    for phase, first, offsets in phases:
        positions = workspace.positions(x, rectified, convolution, phase.remainders, grid)
        if not rectified:
            (y, u), stride = phase.remainders, convolution.window.stride
            positions = positions._replace(values=_pixels(workspace, x, y, u, stride))
        steps.append(
            Accumulate(
                Address((first_row + first) * vector),
                workspace.corner(base.array, grid, channel=want.channel),
                channels,
                positions,
                workspace.keep(offsets),
                taps=len(phase.offsets),
                padded_taps=len(offsets),
                runs=int(phase.runs),
                group=channels // groups,
                group_stride=len(table) // groups * grid.plane * vector,
            )
        )
    want.rows = np.where(table < 0, base.channels, table + first_row)
    return first_row + sum(channels * len(offsets) for _, _, offsets in phases)
