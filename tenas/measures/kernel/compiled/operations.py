"""The operations of a program: what happens to a chunk of cotangents, one sample of the batch after the other.

``run`` is all that is called. Each operation takes one instruction (``record.RECORD``), which says where its arrays are,
and the number of a sample; ``tenas.measures.kernel.instructions`` says which fields it reads.
"""

from __future__ import annotations

from typing import Any

from tenas.measures.kernel.compiled.jit import compiled, inlined
from tenas.measures.kernel.compiled.loops import (
    GATHER_REST,
    GATHER_WIDTH,
    accumulate_four,
    accumulate_nine,
    accumulate_runs,
    gather_few,
    gather_many,
)  # fmt: skip
from tenas.measures.kernel.compiled.record import ACCUMULATE, BOX, COMBINE, DOT, GATHER, MASK, SCATTER, SUM, ZERO
from tenas.measures.kernel.compiled.vector import (
    add,
    fma,
    int32_at,
    load,
    multiply,
    scalar,
    scalar_size,
    splat,
    store,
    vector_size,
)  # fmt: skip


@compiled
def run(template: Any, program: Any, first: int, last: int) -> None:
    """Run ``program`` for samples first to last - 1. All of a sample's steps come before the next sample's: it stays in cache."""
    for j in range(first, last):
        for k in range(len(program)):
            step = program[k]
            if step.op == ZERO:
                _zero(template, step, j)
            elif step.op == COMBINE:
                _combine(template, step, j)
            elif step.op == MASK:
                _mask(template, step, j)
            elif step.op == GATHER:
                _gather(template, step, j)
            elif step.op == BOX:
                _box(template, step, j)
            elif step.op == SCATTER:
                _scatter(template, step, j)
            elif step.op == SUM:
                _sum(template, step, j)
            elif step.op == DOT:
                _dot(template, step, j)
            elif step.op == ACCUMULATE:
                _accumulate(template, step, j)


@compiled
def _zero(template: Any, step: Any, j: int) -> None:
    size = vector_size(template)
    zero = splat(template, template[0])
    height, width, target_row = step.height, step.width, step.target_row
    for c in range(step.channels):
        row = step.target + j * step.target_sample + c * step.target_plane
        for _ in range(height):
            for x in range(width):
                store(template, row + x * size, zero)
            row += target_row


@compiled
def _combine(template: Any, step: Any, j: int) -> None:
    """target (+)= gain[c] * source, plus shift[c] + slope[c] * data[j, c, y, x] or times share[y, x] where there is one."""
    item, size = scalar_size(template), vector_size(template)
    # Read once: the compiler has to suppose that a store to the target changes the program.
    height, width, accumulate = step.height, step.width, step.accumulate
    target_row, source_row, share_first = step.target_row, step.source_row, step.share
    for c in range(step.channels):
        gain = splat(template, scalar(template, step.gain + c * item))
        target = step.target + j * step.target_sample + c * step.target_plane
        source = step.source + j * step.source_sample + c * step.source_plane
        if step.shift != 0:
            shift = load(template, step.shift + c * size)
            slope = load(template, step.slope + c * size)
            data = step.data + j * step.data_sample + c * height * width * item
            for _ in range(height):
                if accumulate:
                    for x in range(width):
                        here = load(template, target + x * size)
                        value = fma(template, gain, load(template, source + x * size), add(template, here, shift))
                        value = fma(template, splat(template, scalar(template, data + x * item)), slope, value)
                        store(template, target + x * size, value)
                else:
                    for x in range(width):
                        value = fma(template, gain, load(template, source + x * size), shift)
                        value = fma(template, splat(template, scalar(template, data + x * item)), slope, value)
                        store(template, target + x * size, value)
                data += width * item
                target += target_row
                source += source_row
        elif share_first != 0:
            share = share_first
            for _ in range(height):
                for x in range(width):
                    factor = multiply(template, gain, splat(template, scalar(template, share + x * item)))
                    value = multiply(template, factor, load(template, source + x * size))
                    if accumulate:
                        value = add(template, value, load(template, target + x * size))
                    store(template, target + x * size, value)
                share += width * item
                target += target_row
                source += source_row
        else:
            for _ in range(height):
                if accumulate:
                    for x in range(width):
                        value = load(template, target + x * size)
                        store(template, target + x * size, fma(template, gain, load(template, source + x * size), value))
                else:
                    for x in range(width):
                        store(template, target + x * size, multiply(template, gain, load(template, source + x * size)))
                target += target_row
                source += source_row


@compiled
def _box(template: Any, step: Any, j: int) -> None:
    """target += the sum of source over 3x3 pixels: the transpose of a 3x3 average, column sums first."""
    size = vector_size(template)
    target_row, source_row, width = step.target_row, step.source_row, step.width
    for c in range(step.channels):
        target = step.target + j * step.target_sample + c * step.target_plane
        above = step.source + j * step.source_sample + c * step.source_plane - source_row - size
        for _ in range(step.height):
            left = _column(template, above, source_row)
            middle = _column(template, above + size, source_row)
            for x in range(width):
                right = _column(template, above + (x + 2) * size, source_row)
                value = add(template, add(template, left, middle), add(template, right, load(template, target + x * size)))
                store(template, target + x * size, value)
                left = middle
                middle = right
            target += target_row
            above += source_row


@inlined
def _column(template: Any, address: int, row: int) -> Any:
    middle = add(template, load(template, address + row), load(template, address + 2 * row))
    return add(template, load(template, address), middle)


@compiled
def _mask(template: Any, step: Any, j: int) -> None:
    """target = 0 where data[j, c, y, x], the output of a ReLU, is 0."""
    item, size = scalar_size(template), vector_size(template)
    zero = splat(template, template[0])
    data = step.data + j * step.data_sample
    for c in range(step.channels):
        row = step.target + j * step.target_sample + c * step.target_plane
        for _ in range(step.height):
            for x in range(step.width):
                if not scalar(template, data) > template[0]:
                    store(template, row + x * size, zero)
                data += item
            row += step.target_row


@compiled
def _segment(step: Any, j: int, c: int) -> tuple[int, int, int]:
    """Where the list of positions of sample j and channel c starts, where that of its values, and how many there are."""
    k = j * step.channels + c
    if step.dense:
        return 0, k * step.dense, step.dense
    start = int32_at(step.starts + 4 * k)
    return start, start, int32_at(step.starts + 4 * k + 4) - start


@compiled
def _gather(template: Any, step: Any, j: int) -> None:
    """The transpose of a convolution, at the listed positions of its input."""
    item = scalar_size(template)
    source = step.source + j * step.source_sample
    for c in range(step.channels):
        start, _, count = _segment(step, j, c)
        target = step.target + j * step.target_sample + c * step.target_plane
        base = source + c // step.group * step.group_stride
        targets, sources = step.targets + 4 * start, step.sources + 4 * start
        weights = step.weights + c * step.taps * item
        i, last = 0, count - 1
        while i < count:
            if count - i > GATHER_REST:
                gather_many(template, target, base, targets, sources, i, last, step.offsets, weights, step.taps)
                i += GATHER_WIDTH
            else:
                gather_few(template, target, base, targets, sources, i, last, step.offsets, weights, step.taps)
                i += GATHER_REST


@compiled
def _scatter(template: Any, step: Any, j: int) -> None:
    """target[positions[j, c, y, x]] += source[c, y, x]: the transpose of a maximum."""
    size = vector_size(template)
    positions = step.targets + 4 * j * step.channels * step.height * step.width
    for c in range(step.channels):
        target = step.target + j * step.target_sample + c * step.target_plane
        row = step.source + j * step.source_sample + c * step.source_plane
        for _ in range(step.height):
            for x in range(step.width):
                at = target + int32_at(positions)
                store(template, at, add(template, load(template, at), load(template, row + x * size)))
                positions += 4
            row += step.source_row


@compiled
def _sum(template: Any, step: Any, j: int) -> None:
    """target[c] += sum of source[c]"""
    size = vector_size(template)
    for c in range(step.channels):
        row = step.source + j * step.source_sample + c * step.source_plane
        even, odd = splat(template, template[0]), splat(template, template[0])
        for _ in range(step.height):
            for x in range(0, step.width - 1, 2):
                even = add(template, even, load(template, row + x * size))
                odd = add(template, odd, load(template, row + (x + 1) * size))
            if step.width % 2:
                even = add(template, even, load(template, row + (step.width - 1) * size))
            row += step.source_row
        at = step.target + c * size
        store(template, at, add(template, load(template, at), add(template, even, odd)))


@compiled
def _dot(template: Any, step: Any, j: int) -> None:
    """target[c] += sum over y, x of source[c, y, x] * data[j, c, y, x]"""
    item, size = scalar_size(template), vector_size(template)
    data = step.data + j * step.data_sample
    for c in range(step.channels):
        row = step.source + j * step.source_sample + c * step.source_plane
        total = splat(template, template[0])
        for _ in range(step.height):
            for x in range(step.width):
                total = fma(template, splat(template, scalar(template, data)), load(template, row + x * size), total)
                data += item
            row += step.source_row
        at = step.target + c * size
        store(template, at, add(template, load(template, at), total))


@compiled
def _accumulate(template: Any, step: Any, j: int) -> None:
    """target[c, t] += sum over listed positions p of values[p] * source[p + offsets[t]]: a convolution's weight gradient."""
    item, size = scalar_size(template), vector_size(template)
    source = step.source + j * step.source_sample
    for c in range(step.channels):
        start, first_value, count = _segment(step, j, c)
        if count == 0:
            continue
        base = source + c // step.group * step.group_stride
        positions, values = step.sources + 4 * start, step.values + item * first_value
        sums = step.target + c * step.padded_taps * size
        t = 0
        while t < step.taps:
            at, offsets = sums + t * size, step.offsets + 4 * t
            if step.runs and step.taps - t >= 27:
                accumulate_runs(template, at, base, positions, values, count, offsets)
                t += 27
            elif step.taps - t > 4:
                accumulate_nine(template, at, base, positions, values, count, offsets)
                t += 9
            else:
                accumulate_four(template, at, base, positions, values, count, offsets)
                t += 4
