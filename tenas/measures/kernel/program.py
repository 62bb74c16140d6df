"""Compile the contributions to a base to the program that fills it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from tenas.measures.kernel.compiled import passes
from tenas.measures.kernel.cotangents import Base, Buffer, Cotangent, Dense, Gathered, Pulled, Scattered, images_of
from tenas.measures.kernel.geometry import Array, Pair, Window, phases_of
from tenas.measures.kernel.instructions import (
    Address,
    Box,
    Combine,
    Gather,
    Instruction,
    Mask,
    Place,
    Scatter,
    Zero,
    pack,
)  # fmt: skip
from tenas.measures.kernel.sums import sums_of
from tenas.measures.kernel.workspace import Workspace


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Program that fills a base and takes its sums: all instructions for one sample, then for the next.

    ``records``: packed instructions, a part of the plan's table. The memory belongs to the workspace and the base.
    """

    base: Base
    instructions: list[Instruction]
    records: Array
    workspace: Workspace


def assemble(workspace: Workspace, base: Base, contributions: Sequence[Pulled]) -> Program:
    """Make the program of a base with an array. Allocates its sums, and sets their rows in the requests for them.

    Instructions that need the mask come first. Gathers do not: they list only positions within the mask.
    """
    program: list[Instruction] = []
    gathered = [c for c in contributions if isinstance(c, Gathered)]
    others = [c for c in contributions if not isinstance(c, Gathered)]
    others.sort(key=lambda c: (c.mask is None, isinstance(c, Scattered)))
    masks = [c.mask for c in others if c.mask is not None]
    target, images = workspace.place(base.array, base.grid), images_of(base.channels, base.grid)
    stored = bool(others) and isinstance(others[0], Dense) and others[0].cotangent.base.grid[:2] == base.grid[:2]
    if contributions and not stored:
        program.append(Zero(target, images))
    for index, contribution in enumerate(others):
        if isinstance(contribution, Dense):
            start = workspace.place(base.array, base.grid, y=contribution.y, x=contribution.x)
            program.append(_combine(workspace, start, contribution.cotangent, accumulate=index > 0 or not stored))
        else:
            program += _scatter(workspace, base, contribution)
        if index + 1 == len(masks):
            program.append(Mask(target, images, workspace.data(masks[0])))
    program += _gathered(workspace, base, gathered)
    program += sums_of(workspace, base)
    return Program(base, program, pack(program), workspace)


def _combine(workspace: Workspace, target: Place, cotangent: Cotangent, *, accumulate: bool) -> Combine:
    """Instruction that adds a cotangent to an array, or stores it there."""
    base = cotangent.base
    instruction = Combine(
        target,
        workspace.place(base.array, base.grid, channel=cotangent.channel),
        images_of(len(cotangent.gain), base.grid),
        int(accumulate),
        workspace.scalars(cotangent.gain),
    )
    if cotangent.coupling is None:
        return instruction
    shift, slope, z = cotangent.coupling
    return instruction._replace(shift=workspace.keep(shift), slope=workspace.keep(slope), data=workspace.data(z))


def _scatter(workspace: Workspace, base: Base, contribution: Scattered) -> list[Instruction]:
    grid = contribution.cotangent.base.grid
    array = workspace.scratch(grid, base.channels)
    source = workspace.place(array, grid)
    indices, width, row, vector = contribution.indices, base.grid.width, base.grid.row, workspace.vector_bytes
    (positions,) = workspace.made(1, lambda: [passes.place_maxima(indices.data.contiguous().numpy(), width, row, vector)])
    return [
        _combine(workspace, source, contribution.cotangent, accumulate=False),
        Scatter(
            workspace.place(base.array, base.grid),
            source,
            images_of(base.channels, grid),
            positions,
        ),
    ]


# --- convolutions and poolings


def _gathered(workspace: Workspace, base: Base, contributions: Sequence[Gathered]) -> list[Instruction]:
    """Merge gathers that can share a pass.

    Convolutions between the same two values differ only in their taps. Poolings of one kind are summed before they are
    transposed, which is linear.
    """
    merged: dict[Hashable, list[Gathered]] = {}
    for contribution in contributions:
        convolution, cotangent = contribution.convolution, contribution.cotangent
        grid = cotangent.base.grid
        key: Hashable = contribution
        if contribution.share is not None:
            key = (convolution.window, grid, contribution.mask, contribution.share.tobytes())
        elif convolution.groups == convolution.window.stride == 1:
            key = (cotangent.base, grid, contribution.mask, cotangent.coupling is None)
        merged.setdefault(key, []).append(contribution)
    program: list[Instruction] = []
    for group in merged.values():
        share = group[0].share
        program += _convolutions(workspace, base, group) if share is None else _poolings(workspace, base, group, share)
    return program


def _poolings(workspace: Workspace, base: Base, group: Sequence[Gathered], share: Array) -> list[Instruction]:
    first = group[0]
    grid = first.cotangent.base.grid
    array = workspace.scratch(grid, base.channels)
    target = workspace.place(array, grid)
    program: list[Instruction] = []
    # Shares are applied last; without added terms they are a factor like any other.
    plain = all(contribution.cotangent.coupling is None for contribution in group)
    shares = workspace.constant(share)
    for contribution in group:
        step = _combine(workspace, target, contribution.cotangent, accumulate=contribution is not first)
        program.append(step._replace(share=shares) if plain else step)
    if not plain:
        ones = workspace.constant(np.ones(base.channels))
        program.append(Combine(target, target, images_of(base.channels, grid), 0, ones, share=shares))
    if first.mask is None and first.convolution.window == Window((3, 3), 1, (1, 1), 1):
        program.append(Box(workspace.place(base.array, base.grid), target, images_of(base.channels, base.grid)))
        return program
    return program + _gathers(workspace, base, [first], [first.convolution.weight], array, [0])


def _convolutions(workspace: Workspace, base: Base, group: Sequence[Gathered]) -> list[Instruction]:
    cotangent = group[0].cotangent
    if cotangent.coupling is None:
        weights = [workspace.scaled(c.convolution.weight, c.cotangent.gain[:, None, None, None]) for c in group]
        channels = [c.cotangent.channel for c in group]
        return _gathers(workspace, base, group, weights, cotangent.base.array, channels)
    weights = [contribution.convolution.weight for contribution in group]
    grid = cotangent.base.grid
    *channels, end = np.cumsum([0, *(len(weight) for weight in weights)]).tolist()
    array = workspace.scratch(grid, end)
    program: list[Instruction] = []
    for contribution, channel in zip(group, channels, strict=True):
        target = workspace.place(array, grid, channel=channel)
        program.append(_combine(workspace, target, contribution.cotangent, accumulate=False))
    return program + _gathers(workspace, base, group, weights, array, channels)


def _gathers(
    workspace: Workspace, base: Base, group: Sequence[Gathered], weights: Sequence[Array], array: Buffer, channels: Sequence[int]
) -> list[Instruction]:
    """Instructions that gather from the planes of ``array`` starting at ``channels``: one per phase of the stride.

    Several contributions only without groups and stride, and if they differ only in their taps.
    """
    first = group[0]
    grid = first.cotangent.base.grid
    groups = first.convolution.groups
    vector = workspace.vector_bytes
    parts: dict[Pair, list[tuple[Array, Array, Array]]] = {}
    for contribution, weight, channel in zip(group, weights, channels, strict=True):
        convolution = contribution.convolution
        outputs = len(convolution.weight) // convolution.groups
        size = convolution.x.shape[2], convolution.x.shape[3]
        numbers = convolution.by_group(np.arange(weight.size).reshape(weight.shape))
        for phase in phases_of(convolution.window, outputs, size, grid, vector):
            taps = numbers[:, :, :, phase.rows][..., phase.columns].transpose(0, 2, 1, 3, 4).reshape(base.channels, -1)
            parts.setdefault(phase.remainders, []).append((phase.offsets + channel * grid.plane * vector, taps, weight))
    program: list[Instruction] = []
    for remainders, pieces in parts.items():
        offsets = np.concatenate([offsets for offsets, _, _ in pieces]).astype(np.int32)
        value = first.mask or first.convolution.x
        program.append(
            Gather(
                workspace.corner(base.array, base.grid),
                workspace.corner(array, grid),
                base.channels,
                workspace.positions(value, first.mask is not None, first.convolution, remainders, grid),
                workspace.keep(offsets),
                _taps(workspace, [(weight, taps) for _, taps, weight in pieces]),
                taps=len(offsets),
                group=base.channels // groups,
                group_stride=len(weights[0]) // groups * grid.plane * vector,
            )
        )
    return program


def _taps(workspace: Workspace, pieces: Sequence[tuple[Array, Array]]) -> Address:
    """Taps of a gather: elements of weights by index (channels, taps), concatenated."""
    taps = np.empty((len(pieces[0][1]), sum(numbers.shape[1] for _, numbers in pieces)), workspace.dtype)

    def renew() -> None:
        start = 0
        for weight, numbers in pieces:
            stop = start + numbers.shape[1]
            taps[:, start:stop] = weight.reshape(-1)[numbers]
            start = stop

    workspace.renew(renew)
    return workspace.keep(taps)
