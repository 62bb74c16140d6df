"""The loops that decide the speed, unrolled when they are compiled, with their accumulators in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from tenas.measures.kernel.compiled.jit import intrinsic
from tenas.measures.kernel.compiled.vector import INT, Emitter, emits

# Positions that a gather works on at once, and in what is left over at the end.
GATHER_WIDTH = 8
GATHER_REST = 4


def _accumulators(to: Emitter, addresses: list[ir.Value]) -> list[ir.Value]:
    """Variables that start as the vectors at the addresses; LLVM keeps them in registers."""
    return [cgutils.alloca_once_value(to.builder, to.load(address)) for address in addresses]  # type: ignore[no-untyped-call]


def _gather(width: int) -> Callable[..., Any]:
    """The loop behind ``gather_many`` and ``gather_few``."""

    def emit(
        to: Emitter, out: ir.Value, base: ir.Value, at: ir.Value, from_: ir.Value, start: ir.Value, last: ir.Value,
        offsets: ir.Value, weights: ir.Value, taps: ir.Value,
    ) -> None:  # fmt: skip
        builder = to.builder
        sums, sources, targets = [], [], []
        for k in range(width):
            index = to.plus(start, k)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            targets.append(builder.add(out, to.offset(at, index)))
            sources.append(builder.add(base, to.offset(from_, index)))
            sums += _accumulators(to, targets[k:])
        with cgutils.for_range(builder, taps) as loop:
            offset = to.offset(offsets, loop.index)
            weight = to.splat(to.scalar(weights, loop.index))
            for k in range(width):
                neighbour = to.load(builder.add(sources[k], offset))
                builder.store(to.fma(weight, neighbour, builder.load(sums[k])), sums[k])
        for k in range(width):
            to.store(builder.load(sums[k]), targets[k])

    return emit


@intrinsic
def gather_many(
    typing: Any, template: Any, out: Any, base: Any, at: Any, from_: Any, start: Any, last: Any, offsets: Any, weights: Any,
    taps: Any,
) -> Any:  # fmt: skip
    """out[at[p]] += sum over t of weights[t] * base[from_[p] + offsets[t]] for GATHER_WIDTH indices p from ``start`` on.

    ``at``, ``from_`` and ``offsets`` are int32 differences of addresses. Indices beyond ``last`` are ``last`` again, which
    is harmless: all are read before any is written.
    """
    return types.void(template, *[types.int64] * 9), emits(template, _gather(GATHER_WIDTH))


@intrinsic
def gather_few(
    typing: Any, template: Any, out: Any, base: Any, at: Any, from_: Any, start: Any, last: Any, offsets: Any, weights: Any,
    taps: Any,
) -> Any:  # fmt: skip
    """``gather_many`` for GATHER_REST positions."""
    return types.void(template, *[types.int64] * 9), emits(template, _gather(GATHER_REST))


def _accumulate(runs: int, length: int) -> Callable[..., Any]:
    """The loop behind ``accumulate_runs`` and the others: ``runs`` offsets, each with ``length`` - 1 neighbours after it."""

    def emit(
        to: Emitter, sums: ir.Value, base: ir.Value, positions: ir.Value, values: ir.Value, count: ir.Value, offsets: ir.Value
    ) -> None:
        builder = to.builder
        rows = [builder.add(base, to.offset(offsets, ir.Constant(INT, r * length))) for r in range(runs)]
        totals = _accumulators(to, [to.plus(sums, k * to.size) for k in range(runs * length)])
        with cgutils.for_range(builder, count) as loop:
            position = to.offset(positions, loop.index)
            value = to.splat(to.scalar(values, loop.index))
            for r in range(runs):
                neighbour = builder.add(rows[r], position)
                for k in range(length):
                    total = totals[r * length + k]
                    g = to.load(to.plus(neighbour, k * to.size))
                    builder.store(to.fma(value, g, builder.load(total)), total)
        for k in range(runs * length):
            to.store(builder.load(totals[k]), to.plus(sums, k * to.size))

    return emit


@intrinsic
def accumulate_runs(
    typing: Any, template: Any, sums: Any, base: Any, positions: Any, values: Any, count: Any, offsets: Any
) -> Any:
    """sums[t] += sum over positions p of values[p] * base[p + offsets[t]], for 9 runs of 3 offsets that are neighbours."""
    return types.void(template, *[types.int64] * 6), emits(template, _accumulate(9, 3))


@intrinsic
def accumulate_nine(
    typing: Any, template: Any, sums: Any, base: Any, positions: Any, values: Any, count: Any, offsets: Any
) -> Any:
    """The same for 9 offsets of any kind."""
    return types.void(template, *[types.int64] * 6), emits(template, _accumulate(9, 1))


@intrinsic
def accumulate_four(
    typing: Any, template: Any, sums: Any, base: Any, positions: Any, values: Any, count: Any, offsets: Any
) -> Any:
    """The same for 4 offsets of any kind."""
    return types.void(template, *[types.int64] * 6), emits(template, _accumulate(4, 1))


def padded(taps: int) -> int:
    """The taps that the three of them work on, in tiles of 27 or 9, and of 4 at the end."""
    rest = taps % 9
    return taps - rest + (0 if rest == 0 else 4 if rest <= 4 else 9)


def _correlate(taps: int) -> Callable[..., Any]:
    """The loop behind ``correlate_nine`` and ``correlate_one``."""

    def emit(to: Emitter, sums: ir.Value, a: ir.Value, b: ir.Value, count: ir.Value, offsets: ir.Value) -> None:
        builder = to.builder
        starts = [builder.add(b, to.offset(offsets, ir.Constant(INT, t))) for t in range(taps)]
        totals = _accumulators(to, [to.plus(sums, t * to.size) for t in range(taps)])
        with cgutils.for_range(builder, count) as loop:
            step = builder.mul(loop.index, ir.Constant(INT, to.size))
            left = to.load(builder.add(a, step))
            for start, total in zip(starts, totals, strict=True):
                right = to.load(builder.add(start, step))
                builder.store(to.fma(left, right, builder.load(total)), total)
        for t, total in enumerate(totals):
            to.store(builder.load(total), to.plus(sums, t * to.size))

    return emit


@intrinsic
def correlate_nine(typing: Any, template: Any, sums: Any, a: Any, b: Any, count: Any, offsets: Any) -> Any:
    """sums[t] += sum of a[p] * b[p + offsets[t]] over ``count`` vectors p of neighbouring scalars, for 9 offsets in bytes."""
    return types.void(template, *[types.int64] * 5), emits(template, _correlate(9))


@intrinsic
def correlate_one(typing: Any, template: Any, sums: Any, a: Any, b: Any, count: Any, offsets: Any) -> Any:
    """The same for 1 offset."""
    return types.void(template, *[types.int64] * 5), emits(template, _correlate(1))
