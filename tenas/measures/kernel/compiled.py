"""The compiled kernels: what happens to a chunk of cotangents, one sample of the batch after the other.

A chunk's cotangents lie side by side in a vector, the innermost dimension of every array: what belongs to the forward
pass (a mask, a normalised activation, a pixel of an unfolded input) is then one scalar for the whole vector.

Numba has no vector type, and its automatic vectorisation keeps accumulators in memory. Here a vector is a numba type of
its own, and the two loops that decide the speed are unrolled at compile time with their accumulators in registers.

Functions take a ``template``, a tuple of ``lanes`` zeros of the dtype: its type says what a vector is. Memory is given by
address, as an integer, since one program works on many arrays; whoever calls keeps them alive. All in one file, because
numba's cache on disk only looks at the file of the compiled function when it asks whether something has changed.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

INT = ir.IntType(64)
# Positions that `gather` works on at once, and in what is left over at the end.
GATHER_WIDTH = 8
GATHER_REST = 4


@functools.cache
def template(dtype: np.dtype, lanes: int) -> tuple:
    return (np.dtype(dtype).type(0),) * lanes


class Vector(types.Type):
    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


def _element(dtype: types.Float) -> ir.Type:
    return ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()


@register_default(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: object, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_element(vector.dtype), vector.lanes))


def _vector_of(template: types.UniTuple) -> Vector:
    return Vector(template.dtype, template.count)


class _Emitter:
    """Emits instructions on vectors of one type."""

    def __init__(self, builder: ir.IRBuilder, template: types.UniTuple) -> None:
        self.builder = builder
        self.element = _element(template.dtype)
        self.vector = ir.VectorType(self.element, template.count)
        self.size = template.count * template.dtype.bitwidth // 8
        self.item = template.dtype.bitwidth // 8

    def pointer(self, address: ir.Value, of: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, of.as_pointer())

    def load(self, address: ir.Value) -> ir.Value:
        return self.builder.load(self.pointer(address, self.vector), align=self.item)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        self.builder.store(value, self.pointer(address, self.vector), align=self.item)

    def splat(self, scalar: ir.Value) -> ir.Value:
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(INT, 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), [0] * self.vector.count)
        return self.builder.shuffle_vector(first, ir.Constant(self.vector, ir.Undefined), mask)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        name = f"llvm.fma.v{self.vector.count}f{8 * self.item}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, [a, b, c])

    def scalar(self, base: ir.Value, index: ir.Value, of: ir.Type | None = None) -> ir.Value:
        """Element ``index`` of the array at ``base``: a lane's type by default."""
        pointer = self.builder.gep(self.pointer(base, of or self.element), [index])
        return self.builder.load(pointer)

    def offset(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """An int32 of the array at ``base``, as an address difference."""
        return self.builder.sext(self.scalar(base, index, ir.IntType(32)), INT)

    def plus(self, address: ir.Value, constant: int) -> ir.Value:
        return self.builder.add(address, ir.Constant(INT, constant)) if constant else address


@intrinsic
def load(typing, template, address):
    def emit(context, builder, signature, args):
        return _Emitter(builder, template).load(args[1])

    return _vector_of(template)(template, types.int64), emit


@intrinsic
def store(typing, template, address, value):
    def emit(context, builder, signature, args):
        _Emitter(builder, template).store(args[2], args[1])
        return context.get_dummy_value()

    return types.void(template, types.int64, _vector_of(template)), emit


@intrinsic
def splat(typing, template, value):
    def emit(context, builder, signature, args):
        return _Emitter(builder, template).splat(args[1])

    return _vector_of(template)(template, template.dtype), emit


@intrinsic
def fma(typing, template, a, b, c):
    """a * b + c"""

    def emit(context, builder, signature, args):
        return _Emitter(builder, template).fma(*args[1:])

    vector = _vector_of(template)
    return vector(template, vector, vector, vector), emit


@intrinsic
def add(typing, template, a, b):
    def emit(context, builder, signature, args):
        return builder.fadd(args[1], args[2])

    vector = _vector_of(template)
    return vector(template, vector, vector), emit


@intrinsic
def multiply(typing, template, a, b):
    def emit(context, builder, signature, args):
        return builder.fmul(args[1], args[2])

    vector = _vector_of(template)
    return vector(template, vector, vector), emit


@intrinsic
def scalar(typing, template, address):
    """The scalar of the template's dtype at an address."""

    def emit(context, builder, signature, args):
        emitter = _Emitter(builder, template)
        return builder.load(emitter.pointer(args[1], emitter.element))

    return template.dtype(template, types.int64), emit


@intrinsic
def scalar_size(typing, template):
    """Bytes of a scalar."""

    def emit(context, builder, signature, args):
        return ir.Constant(INT, template.dtype.bitwidth // 8)

    return types.int64(template), emit


@intrinsic
def vector_size(typing, template):
    """Bytes of a vector."""

    def emit(context, builder, signature, args):
        return ir.Constant(INT, template.count * template.dtype.bitwidth // 8)

    return types.int64(template), emit


@intrinsic
def int32_at(typing, address):
    """The int32 at an address."""

    def emit(context, builder, signature, args):
        return builder.sext(builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer())), INT)

    return types.int64(types.int64), emit


def _gather(width: int):
    """The loop behind ``gather_many`` and ``gather_few``."""

    def typed(typing, template, out, base, at, from_, start, last, offsets, weights, taps):
        def emit(context, builder, signature, args):
            _, out, base, at, from_, start, last, offsets, weights, taps = args
            emitter = _Emitter(builder, template)
            sums, sources, targets = [], [], []
            for k in range(width):
                index = emitter.plus(start, k)
                index = builder.select(builder.icmp_signed("<", index, last), index, last)
                targets.append(builder.add(out, emitter.offset(at, index)))
                sources.append(builder.add(base, emitter.offset(from_, index)))
                sums.append(cgutils.alloca_once_value(builder, emitter.load(targets[k])))
            with cgutils.for_range(builder, taps) as loop:
                offset = emitter.offset(offsets, loop.index)
                weight = emitter.splat(emitter.scalar(weights, loop.index))
                for k in range(width):
                    neighbour = emitter.load(builder.add(sources[k], offset))
                    builder.store(emitter.fma(weight, neighbour, builder.load(sums[k])), sums[k])
            for k in range(width):
                emitter.store(builder.load(sums[k]), targets[k])
            return context.get_dummy_value()

        return types.void(template, *[types.int64] * 9), emit

    return typed


@intrinsic
def gather_many(typing, template, out, base, at, from_, start, last, offsets, weights, taps):
    """out[at[p]] += sum over t of weights[t] * base[from_[p] + offsets[t]] for GATHER_WIDTH indices p from ``start`` on.

    ``at``, ``from_`` and ``offsets`` are int32 differences of addresses. Indices beyond ``last`` are ``last`` again, which
    is harmless: all are read before any is written.
    """
    return _gather(GATHER_WIDTH)(typing, template, out, base, at, from_, start, last, offsets, weights, taps)


@intrinsic
def gather_few(typing, template, out, base, at, from_, start, last, offsets, weights, taps):
    """``gather_many`` for GATHER_REST positions."""
    return _gather(GATHER_REST)(typing, template, out, base, at, from_, start, last, offsets, weights, taps)


def _accumulate(runs: int, length: int):
    """The loop behind ``accumulate_runs`` and the others: ``runs`` offsets, each with ``length`` - 1 neighbours after it."""

    def typed(typing, template, sums, base, positions, values, count, offsets):
        def emit(context, builder, signature, args):
            _, sums, base, positions, values, count, offsets = args
            emitter = _Emitter(builder, template)
            rows = [builder.add(base, emitter.offset(offsets, ir.Constant(INT, r * length))) for r in range(runs)]
            totals = [
                cgutils.alloca_once_value(builder, emitter.load(emitter.plus(sums, k * emitter.size)))
                for k in range(runs * length)
            ]
            with cgutils.for_range(builder, count) as loop:
                position = emitter.offset(positions, loop.index)
                value = emitter.splat(emitter.scalar(values, loop.index))
                for r in range(runs):
                    neighbour = builder.add(rows[r], position)
                    for k in range(length):
                        total = totals[r * length + k]
                        g = emitter.load(emitter.plus(neighbour, k * emitter.size))
                        builder.store(emitter.fma(value, g, builder.load(total)), total)
            for k in range(runs * length):
                emitter.store(builder.load(totals[k]), emitter.plus(sums, k * emitter.size))
            return context.get_dummy_value()

        return types.void(template, *[types.int64] * 6), emit

    return typed


@intrinsic
def accumulate_runs(typing, template, sums, base, positions, values, count, offsets):
    """sums[t] += sum over positions p of values[p] * base[p + offsets[t]], for 9 runs of 3 offsets that are neighbours."""
    return _accumulate(9, 3)(typing, template, sums, base, positions, values, count, offsets)


@intrinsic
def accumulate_nine(typing, template, sums, base, positions, values, count, offsets):
    """The same for 9 offsets of any kind."""
    return _accumulate(9, 1)(typing, template, sums, base, positions, values, count, offsets)


@intrinsic
def accumulate_four(typing, template, sums, base, positions, values, count, offsets):
    """The same for 4 offsets of any kind."""
    return _accumulate(4, 1)(typing, template, sums, base, positions, values, count, offsets)


def _correlate(taps: int):
    """The loop behind ``correlate_nine`` and ``correlate_one``."""

    def typed(typing, template, sums, a, b, count, offsets):
        def emit(context, builder, signature, args):
            _, sums, a, b, count, offsets = args
            emitter = _Emitter(builder, template)
            starts = [builder.add(b, emitter.offset(offsets, ir.Constant(INT, t))) for t in range(taps)]
            totals = [cgutils.alloca_once_value(builder, emitter.load(emitter.plus(sums, t * emitter.size))) for t in range(taps)]
            with cgutils.for_range(builder, count) as loop:
                step = builder.mul(loop.index, ir.Constant(INT, emitter.size))
                left = emitter.load(builder.add(a, step))
                for start, total in zip(starts, totals, strict=True):
                    right = emitter.load(builder.add(start, step))
                    builder.store(emitter.fma(left, right, builder.load(total)), total)
            for t, total in enumerate(totals):
                emitter.store(builder.load(total), emitter.plus(sums, t * emitter.size))
            return context.get_dummy_value()

        return types.void(template, *[types.int64] * 5), emit

    return typed


@intrinsic
def correlate_nine(typing, template, sums, a, b, count, offsets):
    """sums[t] += sum of a[p] * b[p + offsets[t]] over ``count`` vectors p of neighbouring scalars, for 9 offsets in bytes."""
    return _correlate(9)(typing, template, sums, a, b, count, offsets)


@intrinsic
def correlate_one(typing, template, sums, a, b, count, offsets):
    """The same for 1 offset."""
    return _correlate(1)(typing, template, sums, a, b, count, offsets)


# One instruction of a program. Addresses and strides are in bytes. "sample" strides lead from one sample to the next,
# "plane" strides from one channel to the next; 0 stands for an address that isn't there.
INSTRUCTION = np.dtype(
    [
        (name, np.int64)
        for name in (
            "op",
            "target", "target_sample", "target_plane", "target_row",
            "source", "source_sample", "source_plane", "source_row",
            "channels", "height", "width", "accumulate",
            "gain", "shift", "slope", "data", "data_sample", "share",
            "targets", "sources", "values", "starts", "dense",
            "offsets", "weights", "taps", "padded_taps", "runs", "group", "group_stride",
        )
    ]
)  # fmt: skip
ZERO, COMBINE, MASK, GATHER, BOX, SCATTER, SUM, DOT, ACCUMULATE = range(9)


@njit(cache=True, nogil=True, error_model="numpy")
def run(template, program, first, last):
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
                _gather_step(template, step, j)
            elif step.op == BOX:
                _box(template, step, j)
            elif step.op == SCATTER:
                _scatter(template, step, j)
            elif step.op == SUM:
                _sum(template, step, j)
            elif step.op == DOT:
                _dot(template, step, j)
            elif step.op == ACCUMULATE:
                _accumulate_step(template, step, j)


@njit(cache=True, nogil=True, error_model="numpy")
def _zero(template, step, j):
    size = vector_size(template)
    zero = splat(template, template[0])
    height, width, target_row = step.height, step.width, step.target_row
    for c in range(step.channels):
        row = step.target + j * step.target_sample + c * step.target_plane
        for _ in range(height):
            for x in range(width):
                store(template, row + x * size, zero)
            row += target_row


@njit(cache=True, nogil=True, error_model="numpy")
def _combine(template, step, j):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _box(template, step, j):
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


@njit(inline="always")
def _column(template, address, row):
    middle = add(template, load(template, address + row), load(template, address + 2 * row))
    return add(template, load(template, address), middle)


@njit(cache=True, nogil=True, error_model="numpy")
def _mask(template, step, j):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _segment(step, j, c):
    """Where the list of positions of sample j and channel c starts, where that of its values, and how many there are."""
    k = j * step.channels + c
    if step.dense:
        return 0, k * step.dense, step.dense
    start = int32_at(step.starts + 4 * k)
    return start, start, int32_at(step.starts + 4 * k + 4) - start


@njit(cache=True, nogil=True, error_model="numpy")
def _gather_step(template, step, j):
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
                gather_many(
                    template, target, base, targets, sources, i, last, step.offsets, weights, step.taps
                )  # fmt: skip
                i += GATHER_WIDTH
            else:
                gather_few(template, target, base, targets, sources, i, last, step.offsets, weights, step.taps)
                i += GATHER_REST


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter(template, step, j):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _sum(template, step, j):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _dot(template, step, j):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _accumulate_step(template, step, j):
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


def padded(taps):
    """The taps that ``ACCUMULATE`` works on, whose tiles are of 9 and of 4."""
    rest = taps % 9
    return taps - rest + (0 if rest == 0 else 4 if rest <= 4 else 9)


@njit(cache=True, nogil=True, error_model="numpy")
def list_positions(x, stride, phase_y, phase_x, target_row, target_first, source_row, source_first, size):
    """Where x (planes, height, width) is positive, among the pixels of one phase of a stride.

    As byte offsets in two arrays of vectors: in the target array, which is x's own, and in the source array, that of a
    convolution's output, at (y // stride, x // stride). ``first`` is the place of the first pixel in a plane, ``row``
    how many places a row has, ``size`` the bytes of a vector.

    Returns targets, sources, the values of x there, and where the part of each plane starts.
    """
    planes, height, width = x.shape
    # One more than can be used: each pixel is written down, and then counted only if it is positive, without a branch.
    most = 1 + planes * ((height - phase_y + stride - 1) // stride) * ((width - phase_x + stride - 1) // stride)
    targets = np.empty(most, np.int32)
    sources = np.empty(most, np.int32)
    values = np.empty(most, x.dtype)
    starts = np.zeros(planes + 1, np.int32)
    count = 0
    for plane in range(planes):
        for y in range(phase_y, height, stride):
            target = target_first + y * target_row
            source = source_first + y // stride * source_row
            pixels = x[plane, y]
            if stride == 1:
                for u in range(width):
                    value = pixels[u]
                    targets[count] = (target + u) * size
                    sources[count] = (source + u) * size
                    values[count] = value
                    count += value > 0
                continue
            for u in range(phase_x, width, stride):
                value = pixels[u]
                targets[count] = (target + u) * size
                sources[count] = (source + u // stride) * size
                values[count] = value
                count += value > 0
        starts[plane + 1] = count
    return targets, sources, values, starts


@njit(cache=True, nogil=True, error_model="numpy")
def normalise(sums, first_sum, products, rows, weight, bias, mean, inverse, gain, count, coupled, shift, slope, gradient, scale):
    """Batch normalisation's part of the reverse pass, from sums over the batch of the cotangent g at its output.

    With s = sum g and t = sum g * xhat, both per channel and lane, the gradient of its weight is t, and the cotangent
    at its input z is gain * g + shift + slope * z. Written to ``shift`` and ``slope``, added to ``gradient``.

    t comes from sum g * z, which is row ``products + c`` of ``sums`` when ``rows`` is empty. Else z is the output of a
    convolution and sum g * z = bias[c] * s + sum of weight[c, e] * sum g * patch[e], the latter in row ``rows[c, e]``.

    ``scale`` (channels): g is this times what was summed. ``gain``: scale * weight / deviation.
    """
    lanes = sums.shape[1]
    for c in range(len(mean)):
        for i in range(lanes):
            product = 0.0
            s = sums[first_sum + c, i]
            if rows.size:
                product = bias[c] * s
                for e in range(rows.shape[1]):
                    product += weight[c, e] * sums[rows[c, e], i]
            else:
                product = sums[products + c, i]
            t = (product - mean[c] * s) * inverse[c]
            if gradient.size:
                gradient[c, i] += scale[c] * t
            if coupled:
                fall = -gain[c] * inverse[c] * t / count
                slope[c, i] = fall
                shift[c, i] = -gain[c] * s / count - fall * mean[c]


@njit(cache=True, nogil=True, error_model="numpy")
def weight_gradient(sums, rows, gain, shift, slope, patches, products, gradient):
    """gradient[c, e] += sum over the batch of g_z * patch[e], g_z = gain * g + shift + slope * z.

    From sum g * patch (``sums``), sum patch (``patches``) and sum z * patch (``products``); the last two are empty for a
    convolution without batch normalisation, whose shift and slope are zero.
    """
    lanes = sums.shape[1]
    for c in range(rows.shape[0]):
        for e in range(rows.shape[1]):
            for i in range(lanes):
                total = gain[c] * sums[rows[c, e], i]
                if patches.size:
                    total += shift[c, i] * patches[c, e] + slope[c, i] * products[c, e]
                gradient[c, e, i] += total


@njit(cache=True, nogil=True, error_model="numpy")
def forward_products(template, z, x, groups, stride, kernel, padding, dilation):
    """Sums over the batch of patch and of z * patch, for a convolution of x (n, channels, ...) with the output z.

    Both are (channels of z, channels of x in a group, *kernel) in float64.

    Each sample is copied to arrays with borders of zeros, z spread out by the stride, such that an element's sum is the
    product of two stretches of memory.
    """
    n, outer, high, wide = z.shape
    inner, height, width = x.shape[1:]
    each = inner // groups
    row = max(width + 2 * padding[1], (wide - 1) * stride + 1 + dilation * (kernel[1] - 1))
    rows = max(height + 2 * padding[0], (high - 1) * stride + 1 + dilation * (kernel[0] - 1))
    lanes, item = len(template), scalar_size(template)
    # One more vector at the end of each plane, for the last one to run over.
    a = np.zeros((outer, (rows * row // lanes + 1) * lanes), z.dtype)
    b = np.zeros((inner, (rows * row // lanes + 1) * lanes + row * dilation * kernel[0]), z.dtype)
    taps = kernel[0] * kernel[1]
    tiles = (taps + 8) // 9
    offsets = np.zeros(tiles * 9, np.int32)
    for t in range(taps):
        offsets[t] = (t // kernel[1] * dilation * row + t % kernel[1] * dilation) * item
    count = ((high - 1) * stride * row + (wide - 1) * stride + 1 + lanes - 1) // lanes
    part = np.zeros((outer, each, tiles * 9, lanes), z.dtype)
    products = np.zeros((outer, each, taps))
    patches = np.zeros((outer, each, taps))
    seen = np.zeros((inner, taps))
    total = np.zeros((inner, height, width))
    size = lanes * item
    for j in range(n):
        for c in range(outer):
            for y in range(high):
                pixels, place = z[j, c, y], a[c, y * stride * row :]
                if stride == 1:
                    for u in range(wide):
                        place[u] = pixels[u]
                else:
                    for u in range(wide):
                        place[u * stride] = pixels[u]
        for c in range(inner):
            for y in range(height):
                # Rows as arrays of their own: only so the compiler makes vectors of these loops.
                pixels, place, sums = x[j, c, y], b[c, (y + padding[0]) * row + padding[1] :], total[c, y]
                for u in range(width):
                    place[u] = pixels[u]
                for u in range(width):
                    sums[u] += pixels[u]
        for c in range(outer):
            for k in range(each):
                other = c // (outer // groups) * each + k
                at = part.ctypes.data + (c * each + k) * tiles * 9 * size
                left = a.ctypes.data + c * a.shape[1] * item
                right = b.ctypes.data + other * b.shape[1] * item
                if taps == 1:
                    correlate_one(template, at, left, right, count, offsets.ctypes.data)
                else:
                    for tile in range(tiles):
                        shift = offsets.ctypes.data + tile * 36
                        correlate_nine(template, at + tile * 9 * size, left, right, count, shift)
        if j % 8 == 7 or j == n - 1:
            for c in range(outer):
                for k in range(each):
                    for t in range(taps):
                        for lane in range(lanes):
                            products[c, k, t] += part[c, k, t, lane]
            part[:] = 0
    for t in range(taps):
        top, left = t // kernel[1] * dilation - padding[0], t % kernel[1] * dilation - padding[1]
        # The outputs u whose tap lies within the image, u * stride + left from 0 to width - 1.
        begin, end = max(0, (stride - 1 - left) // stride), min(wide, (width - 1 - left) // stride + 1)
        # Several channels side by side, as each sum waits for its last addition.
        for first in range(0, inner, 3):
            second, third = min(first + 1, inner - 1), min(first + 2, inner - 1)
            sum_0, sum_1, sum_2 = 0.0, 0.0, 0.0
            for y in range(high):
                v = y * stride + top
                if 0 <= v < height:
                    row_0, row_1, row_2 = total[first, v], total[second, v], total[third, v]
                    for u in range(begin, end):
                        w = u * stride + left
                        sum_0 += row_0[w]
                        sum_1 += row_1[w]
                        sum_2 += row_2[w]
            seen[first, t], seen[second, t], seen[third, t] = sum_0, sum_1, sum_2
    for c in range(outer):
        for k in range(each):
            patches[c, k] = seen[c // (outer // groups) * each + k]
    return patches, products


@njit(cache=True, nogil=True, error_model="numpy")
def convolve(template, x, weight, share, groups, padding, dilation):
    """A convolution with stride 1: x (n, channels, ...) with weight (channels, channels of a group, ...), times share (h, w).

    Vectors are of neighbouring pixels here: an image with borders of zeros is one stretch of memory, on which each tap
    is a shift.
    """
    n, inner, height, width = x.shape
    outer, each, tall, broad = weight.shape
    high = height + 2 * padding[0] - dilation * (tall - 1)
    wide = width + 2 * padding[1] - dilation * (broad - 1)
    row = width + 2 * padding[1]
    lanes, item = len(template), scalar_size(template)
    vectors = (high * row + lanes - 1) // lanes
    plane = (height + 2 * padding[0]) * row + lanes
    source = np.zeros(inner * plane + vectors * lanes, x.dtype)
    target = np.empty(vectors * lanes, x.dtype)
    positions = (np.arange(vectors) * lanes * item).astype(np.int32)
    taps = each * tall * broad
    offsets = np.empty(taps, np.int32)
    for t in range(taps):
        channel, y, u = t // (tall * broad), t // broad % tall, t % broad
        offsets[t] = (channel * plane + (y * row + u) * dilation) * item
    result = np.empty((n, outer, high, wide), x.dtype)
    for j in range(n):
        for c in range(inner):
            for y in range(height):
                start = c * plane + (y + padding[0]) * row + padding[1]
                # Rows as arrays of their own: only so the compiler makes vectors of these loops.
                pixels, place = x[j, c, y], source[start : start + width]
                for u in range(width):
                    place[u] = pixels[u]
        for c in range(outer):
            target[:] = 0
            base = source.ctypes.data + c // (outer // groups) * each * plane * item
            i = 0
            while i < vectors:
                at, last = positions.ctypes.data, vectors - 1
                weights = weight.ctypes.data + c * taps * item
                if vectors - i > GATHER_REST:
                    gather_many(
                        template, target.ctypes.data, base, at, at, i, last, offsets.ctypes.data, weights, taps
                    )  # fmt: skip
                    i += GATHER_WIDTH
                else:
                    gather_few(template, target.ctypes.data, base, at, at, i, last, offsets.ctypes.data, weights, taps)
                    i += GATHER_REST
            for y in range(high):
                sums, shares, place = target[y * row : y * row + wide], share[y], result[j, c, y]
                for u in range(wide):
                    place[u] = sums[u] * shares[u]
    return result
