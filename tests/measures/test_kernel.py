"""The compiled kernels piece by piece: each instruction and each pass against NumPy or autograd, in float64."""

import itertools
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import get_type_hints

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tenas.measures import ntk_engine
from tenas.measures.kernel import Plan, dump
from tenas.measures.kernel.compiled import jit, operations, passes, record, vector
from tenas.measures.kernel.compiled.loops import padded
from tenas.measures.kernel.cotangents import Buffer
from tenas.measures.kernel.geometry import Grid
from tenas.measures.kernel.instructions import (
    COLUMNS,
    NOWHERE,
    OPERATIONS,
    Accumulate,
    Address,
    Box,
    Combine,
    Data,
    Dot,
    Gather,
    Images,
    Mask,
    Positions,
    Scatter,
    Sum,
    Zero,
    pack,
)
from tenas.measures.kernel.workspace import LANES, Workspace, address
from tenas.measures.ntk import ntk_parameters

TEMPLATE = vector.template(np.dtype(np.float64), LANES)
quick = settings(max_examples=15, deadline=None)
drawn = st.integers(0, 2**32 - 1).map(np.random.default_rng)
# Samples, channels, height, width.
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
halos = st.integers(0, 2)


class Array:
    """An array of cotangents: random ``pixels`` (n, C, H, W, lanes), and a border of 7s that no instruction may write to."""

    def __init__(self, workspace: Workspace, shape: tuple[int, ...], halo: int, generator: np.random.Generator) -> None:
        n, channels, height, width = shape
        self.workspace = workspace
        self.grid = Grid.of(height, width, halo)
        self.channels = channels
        self.tensor = torch.full((n, channels, height + 2 * halo, width + 2 * halo, LANES), 7.0, dtype=torch.float64)
        self.whole = self.tensor.numpy()
        self.pixels = self.whole[:, :, halo : halo + height, halo : halo + width]
        self.pixels[:] = generator.normal(size=self.pixels.shape)
        self.before = self.pixels.copy()

    def place(self, **where: int):
        return self.workspace.place(self.buffer(), self.grid, **where)

    def corner(self):
        return self.workspace.corner(self.buffer(), self.grid)

    def buffer(self) -> Buffer:
        return Buffer(self.channels, self.grid, True, Address(self.tensor.data_ptr()))

    def address(self, c: int, y: int, x: int) -> int:
        """Bytes from the corner of channel 0 to a pixel."""
        return (c * self.grid.plane + self.grid.first + y * self.grid.row + x) * self.workspace.vector_bytes

    def check(self, expected: np.ndarray) -> None:
        np.testing.assert_allclose(self.pixels, expected, rtol=1e-12, atol=1e-12)
        border = self.whole.copy()
        h = self.grid.halo
        border[:, :, h : h + self.grid.height, h : h + self.grid.width] = 7
        assert (border == 7).all()


def workspace(n: int) -> Workspace:
    return Workspace(n, torch.float64, {})


def run(instruction, n: int) -> None:
    """All samples, in two calls."""
    program = pack([instruction])
    operations.run(TEMPLATE, program, 0, n // 2)
    operations.run(TEMPLATE, program, n // 2, n)


def data_of(space: Workspace, array: np.ndarray) -> Data:
    return Data(space.keep(array), array[0].nbytes)


# How instructions are packed.


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.__name__)
def test_an_instruction_has_the_fields_that_its_operation_reads(kind):
    operation = getattr(operations, f"_{kind.__name__.lower()}")
    read = set(operation.py_func.__code__.co_names)
    if "_segment" in read:
        read |= set(operations._segment.py_func.__code__.co_names)
    packed = [{record.FIELDS[c]} if isinstance(c, int) else set(record.FIELDS[c]) for c in COLUMNS[kind]]
    assert read & set(record.FIELDS) <= set().union(*packed)
    # Of a record within the instruction not everything need be read: a gather has no use for the values of its positions.
    for name, fields in zip(kind._fields, packed, strict=True):
        assert fields & read, name


def test_every_field_goes_to_the_column_of_its_name():
    numbers = itertools.count(1)

    def fill(kind):
        hints = get_type_hints(kind).values()
        return kind(*(fill(hint) if hasattr(hint, "_fields") else next(numbers) for hint in hints))

    for kind in OPERATIONS:
        instruction = fill(kind)
        (row,) = pack([instruction])
        assert row["op"] == OPERATIONS[kind]
        used = {"op"}
        for name, value in instruction._asdict().items():
            for part, number in value._asdict().items() if hasattr(value, "_fields") else [(name, value)]:
                column = next(c for c in (f"{name}_{part}", part, name) if c in record.FIELDS)
                if part == "address":
                    column = name
                assert row[column] == number, (kind, name, part)
                used.add(column)
        assert all(row[column] == 0 for column in record.FIELDS if column not in used)
    assert sorted(OPERATIONS.values()) == list(range(len(OPERATIONS)))


# Instructions.


@given(shapes, halos, drawn)
@quick
def test_zero(shape, halo, generator):
    target = Array(workspace(shape[0]), shape, halo, generator)
    run(Zero(target.place(), Images(*shape[1:])), shape[0])
    target.check(np.zeros_like(target.before))


@given(shapes, halos, halos, st.booleans(), st.sampled_from(["plain", "coupled", "share"]), drawn)
@quick
def test_combine(shape, halo, other_halo, accumulate, kind, generator):
    """From some channels of a source to a part of a larger target."""
    n, channels, height, width = shape
    space = workspace(n)
    first, y, x = generator.integers(0, 3, 3).tolist()
    target = Array(space, (n, channels, height + y, width + x), halo, generator)
    source = Array(space, (n, channels + first, height, width), other_halo, generator)
    gain, share = generator.normal(size=channels), generator.normal(size=(height, width))
    z = generator.normal(size=shape)
    shift, slope = generator.normal(size=(2, channels, LANES))
    instruction = Combine(
        target.place(y=y, x=x), source.place(channel=first), Images(*shape[1:]), int(accumulate), space.keep(gain)
    )  # fmt: skip
    value = gain[:, None, None, None] * source.before[:, first:]
    if kind == "coupled":
        instruction = instruction._replace(shift=space.keep(shift), slope=space.keep(slope), data=data_of(space, z))
        value = value + shift[:, None, None] + slope[:, None, None] * z[..., None]
    elif kind == "share":
        instruction = instruction._replace(share=space.keep(share))
        value = value * share[..., None]
    run(instruction, n)
    expected = target.before.copy()
    expected[:, :, y:, x:] = value + (expected[:, :, y:, x:] if accumulate else 0)
    target.check(expected)
    source.check(source.before)


@given(shapes, halos, drawn)
@quick
def test_mask(shape, halo, generator):
    space = workspace(shape[0])
    target = Array(space, shape, halo, generator)
    active = np.maximum(generator.normal(size=shape), 0)
    run(Mask(target.place(), Images(*shape[1:]), data_of(space, active)), shape[0])
    target.check(target.before * (active > 0)[..., None])


@given(shapes, halos, drawn)
@quick
def test_box(shape, halo, generator):
    space = workspace(shape[0])
    target, source = Array(space, shape, halo, generator), Array(space, shape, 1, generator)
    h = source.grid.halo
    source.whole[:, :, [0, -1]] = source.whole[:, :, :, [0, -1]] = 0
    run(Box(target.place(), source.place(), Images(*shape[1:])), shape[0])
    height, width = shape[2:]
    boxes = sum(source.whole[:, :, y : y + height, x : x + width] for y in range(2 * h + 1) for x in range(2 * h + 1))
    target.check(target.before + boxes)


@given(shapes, st.tuples(st.integers(1, 4), st.integers(1, 4)), halos, drawn)
@quick
def test_scatter(shape, size, halo, generator):
    """Several pixels may go to the same place."""
    n, channels, height, width = shape
    space = workspace(n)
    target, source = Array(space, shape, halo, generator), Array(space, (n, channels, *size), 1, generator)
    y, x = generator.integers(0, height, (n, channels, *size)), generator.integers(0, width, (n, channels, *size))
    places = ((y * target.grid.row + x) * space.vector_bytes).astype(np.int32)
    run(Scatter(target.place(), source.place(), Images(channels, *size), space.keep(places)), n)
    expected = target.before.copy()
    for j, c, p, q in np.ndindex(n, channels, *size):
        expected[j, c, y[j, c, p, q], x[j, c, p, q]] += source.before[j, c, p, q]
    target.check(expected)


@given(shapes, halos, drawn)
@quick
def test_sum_and_dot(shape, halo, generator):
    n, channels, height, width = shape
    space = workspace(n)
    source = Array(space, (n, channels + 1, height, width), halo, generator)
    z = generator.normal(size=shape)
    sums = generator.normal(size=(2, channels, LANES))
    expected = sums.copy()
    run(Sum(address(sums[0]), source.place(channel=1), Images(*shape[1:])), n)
    run(Dot(address(sums[1]), source.place(channel=1), Images(*shape[1:]), data_of(space, z)), n)
    expected[0] += source.before[:, 1:].sum((0, 2, 3))
    expected[1] += (source.before[:, 1:] * z[..., None]).sum((0, 2, 3))
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)


def positions_of(
    space: Workspace, active: np.ndarray, dense: bool, target: Array, source: Array, values: np.ndarray
) -> Positions:
    """The pixels where ``active`` (n, C, H, W) is True, the same in both arrays; ``dense``: those of its first image for all."""
    lists = [np.argwhere(pixels) for pixels in active.reshape(-1, *active.shape[2:])]
    if dense:
        lists = lists[:1]
    pixels = np.concatenate(lists)
    places = [[array.address(0, y, x) for y, x in pixels] for array in (target, source)]
    targets, sources = (space.keep(np.array([*p, 0], np.int32)) for p in places)
    if dense:
        return Positions(targets, sources, space.keep(values), NOWHERE, len(pixels))
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return Positions(targets, sources, space.keep(values), space.keep(starts), 0)


def active_pixels(shape: tuple[int, ...], dense: bool, generator: np.random.Generator) -> np.ndarray:
    active = generator.random(shape) < 0.5
    if dense:
        active[:] = active[:1, :1]
        active[..., 0, 0] = True
    return active


@given(shapes, st.integers(1, 2), st.integers(1, 12), st.booleans(), drawn)
@settings(max_examples=30, deadline=None)
def test_gather(shape, groups, taps, dense, generator):
    """Weights of its own for each channel of the target, of which each group reads planes of its own."""
    n, each, height, width = shape
    channels, planes = each * groups, int(generator.integers(1, 3))
    space = workspace(n)
    target = Array(space, (n, channels, height, width), 1, generator)
    source = Array(space, (n, planes * groups, height, width), 2, generator)
    active = active_pixels((n, channels, height, width), dense, generator)
    steps = [(int(generator.integers(planes)), *generator.integers(-2, 3, 2).tolist()) for _ in range(taps)]
    offsets = np.array([source.address(*step) - source.address(0, 0, 0) for step in steps], np.int32)
    weights = generator.normal(size=(channels, taps))
    positions = positions_of(space, active, dense, target, source, np.zeros(0))
    stride = planes * source.grid.plane * space.vector_bytes
    run(
        Gather(
            target.corner(), source.corner(), channels, positions, space.keep(offsets), space.keep(weights), taps, each, stride
        ),
        n,
    )
    expected = target.before.copy()
    for j, c, y, x in np.argwhere(active):
        for weight, (plane, dy, dx) in zip(weights[c], steps, strict=True):
            expected[j, c, y, x] += weight * source.whole[j, c // each * planes + plane, y + dy + 2, x + dx + 2]
    target.check(expected)
    source.check(source.before)


@given(shapes, st.integers(1, 2), st.integers(1, 12), st.booleans(), st.booleans(), drawn)
@settings(max_examples=30, deadline=None)
def test_accumulate(shape, groups, rows, runs, dense, generator):
    """With and without offsets that are neighbours three by three, in numbers of taps that fill each kind of tile."""
    n, each, height, width = shape
    channels, planes = each * groups, int(generator.integers(1, 3))
    space = workspace(n)
    source = Array(space, (n, planes * groups, height, width), 2, generator)
    active = active_pixels((n, channels, height, width), dense, generator)
    starts = [(int(generator.integers(planes)), *generator.integers(-2, 1, 2).tolist()) for _ in range(rows)]
    steps = [(plane, y, x + k) for plane, y, x in starts for k in range(3)] if runs else starts
    taps, whole = len(steps), padded(len(steps))
    offsets = np.zeros(whole, np.int32)
    offsets[:taps] = [source.address(*step) - source.address(0, 0, 0) for step in steps]
    z = generator.normal(size=active.shape)
    positions = positions_of(space, active, dense, source, source, z[active])
    sums = generator.normal(size=(channels, whole, LANES))
    expected = sums.copy()
    stride = planes * source.grid.plane * space.vector_bytes
    run(
        Accumulate(
            address(sums), source.corner(), channels, positions, space.keep(offsets), taps, whole, int(runs), each, stride
        ),
        n,
    )
    for j, c, y, x in np.argwhere(active):
        for t, (plane, dy, dx) in enumerate(steps):
            expected[c, t] += z[j, c, y, x] * source.whole[j, c // each * planes + plane, y + dy + 2, x + dx + 2]
    np.testing.assert_allclose(sums[:, :taps], expected[:, :taps], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taps", range(1, 60))
def test_tiles_cover_all_taps_with_less_than_a_tile_left_over(taps):
    tiles, left = 0, taps
    while left > 0:
        step = 9 if left > 4 else 4
        tiles, left = tiles + step, left - step
    assert padded(taps) == tiles


def test_instructions_run_in_order_for_a_sample_and_then_for_the_next():
    """A scratch array of one sample carries each from its source to its target."""
    generator = np.random.default_rng(0)
    space = workspace(3)
    source, target = (Array(space, (3, 2, 4, 4), 1, generator) for _ in range(2))
    scratch = space.scratch(source.grid, 2)
    there, ones = space.place(scratch, source.grid), space.keep(np.ones(2))
    program = pack(
        [
            Combine(there, source.place(), Images(2, 4, 4), 0, ones),
            Combine(target.place(), there, Images(2, 4, 4), 0, ones),
        ]
    )
    space.load()
    space.link(program.view(np.int64))()
    operations.run(TEMPLATE, program, 0, 3)
    space.release()
    target.check(source.before)


# Passes over whole arrays.


@given(shapes, st.integers(1, 3), halos, halos, drawn)
@quick
def test_list_positions(shape, stride, halo, other_halo, generator):
    height, width = shape[2:]
    x = np.maximum(generator.normal(size=(shape[0] * shape[1], height, width)), 0)
    phase_y, phase_x = (int(generator.integers(min(stride, size))) for size in (height, width))
    own, out = Grid.of(height, width, halo), Grid.of(-(-height // stride), -(-width // stride), other_halo)
    targets, sources, values, starts = passes.list_positions(
        x, stride, phase_y, phase_x, own.row, own.first, out.row, out.first, 64
    )  # fmt: skip
    expected = [
        (plane, own.first + y * own.row + u, out.first + y // stride * out.row + u // stride, x[plane, y, u])
        for plane, y, u in np.argwhere(x > 0)
        if y % stride == phase_y and u % stride == phase_x
    ]
    count = starts[-1]
    assert count == len(expected)
    assert [*zip(targets[:count] // 64, sources[:count] // 64, values[:count], strict=True)] == [e[1:] for e in expected]
    assert starts.tolist() == [sum(e[0] < plane for e in expected) for plane in range(len(x) + 1)]


def normalised(z: torch.Tensor, weight: torch.Tensor, coupled: bool, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(z, mean.clone(), var.clone(), weight, None, training=coupled, eps=1e-5)


@given(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(1, 6)), st.booleans(), st.booleans(), drawn)
@quick
def test_normalise(shape, coupled, convolved, generator):
    """Against the gradients of torch's batch normalisation, for each lane; z a value of any kind or of a 1x1 convolution."""
    n, channels, height, width = shape
    x = torch.from_numpy(generator.normal(size=(n, 3, height, width)))
    kernel, bias = torch.from_numpy(generator.normal(size=(channels, 3))), torch.from_numpy(generator.normal(size=channels))
    z = (torch.einsum("ce,nehw->nchw", kernel, x) + bias[:, None, None]).requires_grad_()
    weight = torch.from_numpy(generator.normal(size=channels)).requires_grad_()
    mean, var = torch.from_numpy(generator.normal(size=channels)), torch.from_numpy(generator.random(channels) + 0.5)
    y = normalised(z, weight, coupled, mean, var)
    scale, g = generator.normal(size=channels), generator.normal(size=(LANES, *shape))
    if coupled:
        mean, var = z.detach().mean((0, 2, 3)), z.detach().var((0, 2, 3), correction=0)
    inverse = 1 / np.sqrt(var.numpy() + 1e-5)
    own = g.sum((1, 3, 4)).T
    patches = np.einsum("lnchw,nehw->cel", g, x.numpy()).reshape(-1, LANES)
    dots = np.einsum("lnchw,nchw->cl", g, z.detach().numpy())
    # A row of others first: the channels of the base that are not this value's.
    sums = np.concatenate([np.ones((1, LANES)), own, patches if convolved else dots])
    rows = (1 + channels + np.arange(3 * channels)).reshape(channels, 3) if convolved else np.empty((0, 0), np.int64)
    shift, slope = np.zeros((2, channels if coupled else 0, LANES))
    gradient = generator.normal(size=(channels, LANES))
    before = gradient.copy()
    gain = scale * weight.detach().numpy() * inverse
    passes.normalise(
        sums, 1, 1 + channels, rows, kernel.numpy() if convolved else np.empty((0, 0)), bias.numpy(), mean.numpy(), inverse, gain,
        n * height * width, coupled, shift, slope, gradient, scale,
    )  # fmt: skip
    for lane in range(LANES):
        at_y = torch.from_numpy(scale[:, None, None] * g[lane])
        at_z, at_weight = torch.autograd.grad(y, (z, weight), at_y, retain_graph=True)
        found = gain[:, None, None] * g[lane]
        if coupled:
            found = found + shift[:, lane, None, None] + slope[:, lane, None, None] * z.detach().numpy()
        np.testing.assert_allclose(found, at_z.numpy(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(gradient[:, lane] - before[:, lane], at_weight.numpy(), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), drawn)
@quick
def test_weight_gradient(channels, elements, coupled, generator):
    sums = generator.normal(size=(channels * elements + 1, LANES))
    rows = generator.permutation(channels * elements).reshape(channels, elements) + 1
    gain, (shift, slope) = generator.normal(size=channels), generator.normal(size=(2, channels, LANES))
    patches, products = generator.normal(size=(2, channels, elements))
    gradient = generator.normal(size=(channels, elements, LANES))
    expected = gradient + gain[:, None, None] * sums[rows]
    if coupled:
        expected += shift[:, None] * patches[..., None] + slope[:, None] * products[..., None]
    none = np.empty((0, 0))
    passes.weight_gradient(
        sums, rows, gain, shift if coupled else shift[:0], slope if coupled else slope[:0], patches if coupled else none,
        products if coupled else none, gradient,
    )  # fmt: skip
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


windows = st.fixed_dictionaries(
    {
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.integers(1, 3),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": st.integers(1, 2),
    }
)
sizes = st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9))


def out_of(size: int, axis: int, window: dict) -> int:
    reach = window["dilation"] * (window["kernel"][axis] - 1) + 1
    return (size + 2 * window["padding"][axis] - reach) // window["stride"] + 1


@given(sizes, st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), windows, drawn)
@settings(max_examples=30, deadline=None)
def test_forward_products(size, groups, each, outer, window, generator):
    n, height, width = size
    out = [out_of(height, 0, window), out_of(width, 1, window)]
    if min(out) < 1:
        return
    x, z = generator.normal(size=(n, each * groups, height, width)), generator.normal(size=(n, outer * groups, *out))
    patches, products = passes.forward_products(
        TEMPLATE, z, x, groups, window["stride"], window["kernel"], window["padding"], window["dilation"]
    )
    unfolded = functional.unfold(torch.from_numpy(x), window["kernel"], window["dilation"], window["padding"], window["stride"])
    unfolded = unfolded.numpy().reshape(n, groups, each * np.prod(window["kernel"]), -1)
    by_group = z.reshape(n, groups, outer, -1)
    expected = np.einsum("ngop,ngep->goe", by_group, unfolded).reshape(products.shape[0], each, -1)
    sums = np.repeat(unfolded.sum((0, 3)), outer, axis=0).reshape(expected.shape)
    np.testing.assert_allclose(products.reshape(expected.shape), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(patches.reshape(expected.shape), sums, rtol=1e-11, atol=1e-11)


@given(sizes, st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), windows, drawn)
@settings(max_examples=30, deadline=None)
def test_convolve(size, groups, each, outer, window, generator):
    n, height, width = size
    window = {**window, "stride": 1}
    out = out_of(height, 0, window), out_of(width, 1, window)
    if min(out) < 1:
        return
    x, share = generator.normal(size=(n, each * groups, height, width)), generator.normal(size=out)
    weight = generator.normal(size=(outer * groups, each, *window["kernel"]))
    found = passes.convolve(TEMPLATE, x, weight, share, groups, window["padding"], window["dilation"])
    expected = functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, 1, window["padding"], window["dilation"], groups
    )
    np.testing.assert_allclose(found, expected.numpy() * share, rtol=1e-11, atol=1e-11)


# What is kept on disk, and what can be read.


def test_machine_code_is_only_used_again_if_no_file_of_the_folder_has_changed(monkeypatch):
    operations.run(TEMPLATE, pack([]), 0, 0)
    (signature, *_), target = operations.run.signatures, operations.run.targetctx
    assert jit.FolderCache(operations.run.py_func).load_overload(signature, target) is not None
    assert jit._digest() == jit.CODE
    monkeypatch.setattr(jit, "CODE", "another")
    assert jit.FolderCache(operations.run.py_func).load_overload(signature, target) is None
    files = {path.name for path in (ROOT / "tenas/measures/kernel/compiled").glob("*.py")}
    assert {"vector.py", "loops.py", "operations.py", "passes.py", "record.py"} < files


def test_a_listing_knows_every_instruction_and_all_of_its_memory():
    layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.BatchNorm2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 1)
    network = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten())
    images = torch.randn(2, 3, 8, 8)
    with ntk_engine.recorded(network, images, ntk_parameters(network)) as (tape, logits):
        plan = Plan(tape, logits)
        plan.load()
        listings = [dump(program) for program in plan.programs]
        plan.run()
        assert [dump(program) for program in plan.programs] == listings
        plan.close()
    lines = [line for listing in listings for line in listing.splitlines()[1:]]
    assert {line.split()[1] for line in lines} == {kind.__name__.lower() for kind in OPERATIONS}
    assert "unknown" not in "".join(listings)


def test_the_readme_shows_what_its_example_prints():
    text = (ROOT / "tenas/measures/kernel/README.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL).groups()
    printed = StringIO()
    with redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown


# The condition number of a small network, as a user of the package gets it.
USER = """
import torch, tenas
cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
torch.manual_seed(0)
network = tenas.build(cell, channels=2, cells=1, classes=3)
images = torch.linspace(0, 1, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8) ** 2
print(tenas.measure("ntk_condition_number")(network, images))
"""


@pytest.mark.long
@pytest.mark.parametrize("temporary", [True, False], ids=["a temporary folder", "nowhere"])
def test_machine_code_is_kept_elsewhere_where_the_package_cannot_be_written(tmp_path, temporary):
    """Nor the home folder: said once, with the same value."""
    package = ROOT / "tenas"
    mounted = f'mount --bind {package} {package} && mount -o remount,ro,bind {package} && exec "$@"'
    within = ["unshare", "--map-root-user", "--mount", "bash", "-c", mounted, "bash"]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    usual = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True, env=environment, cwd=tmp_path)
    elsewhere = {"HOME": "/proc/x", "XDG_CACHE_HOME": "/proc/x", "TMPDIR": str(tmp_path)}
    if not temporary:
        (tmp_path / "tenas-0").touch()
    found = subprocess.run(
        [*within, sys.executable, "-c", USER], capture_output=True, text=True, env=environment | elsewhere, cwd=tmp_path
    )
    assert (found.stdout, found.returncode) == (usual.stdout, 0)
    where = f"it is in {tmp_path}/tenas-0/kernel" if temporary else "each process compiles it again"
    assert (
        found.stderr
        == f"tenas: note: the kernel's machine code cannot be kept next to the package or in the home folder; {where}.\n"
    )
