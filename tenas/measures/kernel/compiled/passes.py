"""Compiled passes over whole arrays, called one by one: lists of positions, what follows from sums, forward convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tenas.measures.kernel.compiled.jit import compiled
from tenas.measures.kernel.compiled.loops import GATHER_REST, GATHER_WIDTH, correlate_nine, correlate_one, gather_few, gather_many
from tenas.measures.kernel.compiled.vector import scalar_size

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]


@compiled
def list_positions(
    x: Array, stride: int, phase_y: int, phase_x: int, target_row: int, target_first: int, source_row: int, source_first: int,
    size: int,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
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


@compiled
def place_maxima(indices: Array, width: int, row: int, size: int) -> Array:
    """Where the maxima of a pooling are, given as numbers of pixels in images of a width, in byte offsets.

    In an array of vectors: ``row`` is how many places a row has, ``size`` the bytes of a vector.
    """
    places = np.empty(indices.size, np.int32)
    flat = indices.reshape(-1)
    for i in range(len(flat)):
        pixel = np.uint32(flat[i])
        y = pixel // np.uint32(width)
        places[i] = (y * np.uint32(row) + pixel - y * np.uint32(width)) * np.uint32(size)
    return places


@compiled
def normalise(
    sums: Array, first_sum: int, products: int, rows: Array, weight: Array, bias: Array, mean: Array, inverse: Array, gain: Array,
    count: int, coupled: bool, shift: Array, slope: Array, gradient: Array, scale: Array,
) -> None:  # fmt: skip
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


@compiled
def weight_gradient(
    sums: Array, rows: Array, gain: Array, shift: Array, slope: Array, patches: Array, products: Array, gradient: Array
) -> None:
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


@compiled
def forward_products(
    template: Any, z: Array, x: Array, groups: int, stride: int, kernel: Pair, padding: Pair, dilation: int
) -> tuple[Array, Array]:
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


@compiled
def convolve(template: Any, x: Array, weight: Array, share: Array, groups: int, padding: Pair, dilation: int) -> Array:
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
                    gather_many(template, target.ctypes.data, base, at, at, i, last, offsets.ctypes.data, weights, taps)
                    i += GATHER_WIDTH
                else:
                    gather_few(template, target.ctypes.data, base, at, at, i, last, offsets.ctypes.data, weights, taps)
                    i += GATHER_REST
            for y in range(high):
                sums, shares, place = target[y * row : y * row + wide], share[y], result[j, c, y]
                for u in range(wide):
                    place[u] = sums[u] * shares[u]
    return result
