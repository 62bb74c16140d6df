"""Reverse rules of few launches and few passes over memory, for GPUs: the same as those of ``ntk_rules``, to rounding.

On a GPU, the cost of a small operator is its launch, that of a large one the bytes that it reads and writes. On a CPU the rules
of ``ntk_rules`` are used, as published results depend on their bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tenas.measures import ntk_rules as rules
from tenas.measures.ntk_rules import BatchNorm, Contributions
from tenas.measures.ntk_tape import Record, Value, aten


def convolution(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """One transposed convolution for the input, one batched product for the weight.

    The cotangent of a weight that has no other use is of shape (m, groups, channels of a group, patch).
    """
    x, weight, bias, stride, padding, dilation, transposed, _, groups = record.args
    (g,) = cotangents[:1]
    if g is None or x.tensor.ndim != 4 or transposed:
        yield from rules.convolution(record, cotangents)
        return
    m, n, height, width = *g.shape[:2], *g.shape[3:]
    if x.active:
        folded = g.flatten(0, 1)
        # Only the shape of the input is read, but a tensor is needed: any of the right size, or uninitialised memory.
        like = folded if folded.shape[1:] == x.shape[1:] else folded.new_empty(m * n, *x.shape[1:])
        yield x, rules.transposed_convolution(record, g, like)
    if weight.active:
        read = patches(x.data, weight.shape[2:], stride, padding, dilation, groups)
        sides = torch.unflatten(g, 2, (groups, -1)).permute(2, 0, 3, 1, 4, 5).reshape(groups, -1, n * height * width)
        found = torch.bmm(sides, read).view(groups, m, -1, read.shape[2]).transpose(0, 1)
        yield weight, found if len(weight.uses) == 1 else found.reshape(m, *weight.shape)
    if bias is not None and bias.active:
        yield bias, g.sum((1, 3, 4))


def patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Unfold the inputs of each output of a convolution: x (n, c, h, w) to (groups, n * outputs, c / groups * kernel).

    A view of the padded image, written out at once; ``unfold`` launches once for each image.
    """
    if any(padding):
        x = functional.pad(x, (padding[-1], padding[-1], padding[0], padding[0]))
    n, c, *size = x.shape
    count = [
        (side - gap * (taps - 1) - 1) // step + 1 for side, taps, step, gap in zip(size, kernel, stride, dilation, strict=True)
    ]
    samples, features, *places = x.stride()
    windows = x.as_strided(
        (groups, n, *count, c // groups, *kernel),
        (c // groups * features, samples, *(place * step for place, step in zip(places, stride, strict=True)),
         features, *(place * gap for place, gap in zip(places, dilation, strict=True))),
    )  # fmt: skip
    return windows.reshape(groups, n * count[0] * count[1], -1)


def batch_norm(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """Coupled: g_z = gain * g + shift + slope * xhat, with shift and slope from two sums over the batch."""
    (g, *others) = cotangents
    norm: BatchNorm = record.cache.get("norm") or record.cache.setdefault("norm", BatchNorm(record))
    if g is None or any(other is not None for other in others) or not norm.coupled:
        yield from rules.batch_norm(record, cotangents)
        return
    z, ndim = norm.z.data, norm.z.tensor.ndim
    places = (-1, *[1] * (ndim - 2))  # of a vector of channels
    xhat = (z - norm.mean.view(places)) * norm.inverse_deviation.view(places)
    dims = (1, *range(3, g.ndim))
    total, along = g.sum(dims), (g * xhat).sum(dims)
    if norm.weight is not None and norm.weight.active:
        yield norm.weight, along
    if norm.z.active:
        gain = norm.gain()
        share, shape = gain / -norm.count, (len(g), 1, *places)
        moved = torch.addcmul((total * share).view(shape), xhat, (along * share).view(shape))
        yield norm.z, moved.addcmul_(g, gain.view(places))
    if isinstance(bias := record.args[2], Value) and bias.active:
        yield bias, total


def relu(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    yield record.args[0], aten.threshold_backward(cotangents[0], record.out.data, 0)


def average_pool(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    x, *settings = record.args
    (g,) = cotangents[:1]
    if g is None or x.tensor.ndim != 4:
        yield from rules.average_pool(record, cotangents)
        return
    settings = [*settings, *([], 0, False, True, None)[len(settings) - 1 :]]
    folded = g.flatten(0, 1).contiguous()
    like = folded if folded.shape[1:] == x.shape[1:] else folded.new_empty(len(folded), *x.shape[1:])
    yield x, aten.avg_pool2d_backward(folded, like, *settings).unflatten(0, g.shape[:2])
