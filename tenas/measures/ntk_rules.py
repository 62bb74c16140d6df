"""Reverse rules that carry a chunk of cotangents through one recorded operator, in plain torch on any device.

A cotangent of a value of shape S is a tensor of shape (m, *S): m cotangents side by side. A rule takes a record and the
cotangents of its outputs and yields (input value, cotangent) for inputs that are active. The m are folded into the batch
where an operator treats samples one by one, so that a rule is one call however large m is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tenas.measures.ntk_tape import Record, UntraceableError, Value, aten, substitute

Contributions = Iterator[tuple[Value, Tensor]]

DIVISIONS = {aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.div_.Scalar}
SUBTRACTIONS = {aten.sub.Tensor, aten.sub_.Tensor}
BATCH_NORMS = {
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten.cudnn_batch_norm.default,
}
RELUS = {aten.relu.default, aten.relu_.default}


def _only(cotangents: list[Tensor | None]) -> Tensor:
    """Cotangent of an operator's only output, or of its first output if the others have none."""
    g = cotangents[0]
    assert g is not None
    return g


class BatchNorm:
    """A batch normalisation on the tape, by any of torch's operators: value z to value y.

    ``xhat = (z - mean) * inverse_deviation``, statistics of the batch when ``coupled``, else constants.
    """

    def __init__(self, record: Record) -> None:
        args = record.args
        no_stats = record.op is aten._native_batch_norm_legit.no_stats
        self.z, self.weight = args[0], args[1]
        self.coupled = True if no_stats else bool(args[5])
        if self.coupled:
            mean, inverse_deviation = record.outputs[1:3]
            assert mean is not None
            assert inverse_deviation is not None
            self.mean, self.inverse_deviation = mean.data, inverse_deviation.data
        else:
            self.mean, self.inverse_deviation = args[3].data, torch.rsqrt(args[4].data + args[7])
        self.count = self.z.tensor.numel() // self.z.shape[1]

    def gain(self) -> Tensor:
        """Factor from z to y: weight / deviation, (C,)."""
        return self.inverse_deviation if self.weight is None else self.weight.data * self.inverse_deviation


def _channels(vector: Tensor, ndim: int) -> Tensor:
    return vector.view(-1, *[1] * (ndim - 2))


def batch_norm(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """y = weight * xhat + bias. Coupled: g_z = gain * (g - mean(g) - xhat * mean(g * xhat)), means over the batch.

    Source: Ioffe and Szegedy 2015, section 3.
    """
    (g, *others) = cotangents
    if g is None or any(other is not None for other in others):
        yield from by_autograd(record, cotangents)
        return
    norm: BatchNorm = record.cache.get("norm") or record.cache.setdefault("norm", BatchNorm(record))
    z = norm.z.data
    xhat = (z - _channels(norm.mean, z.ndim)) * _channels(norm.inverse_deviation, z.ndim)
    dims = (1, *range(3, g.ndim))
    weight_active = norm.weight is not None and norm.weight.active
    total = (g * xhat).sum(dims) if weight_active or norm.coupled else g
    if weight_active:
        yield norm.weight, total
    if norm.z.active:
        if norm.coupled:
            shape = (len(g), 1, -1, *[1] * (z.ndim - 2))
            g = g - g.mean(dims, keepdim=True) - xhat * (total.reshape(shape) / norm.count)
        yield norm.z, g * _channels(norm.gain(), z.ndim)
    if isinstance(bias := record.args[2], Value) and bias.active:
        yield bias, _only(cotangents).sum(dims)


def transposed_convolution(record: Record, g: Tensor, like: Tensor) -> Tensor:
    """The cotangents of a convolution's input, (m, n, c, h, w), from those of its output, folded to one batch of m * n.

    ``like``: of the shape of m * n inputs; its values are not read.
    """
    _, weight, _, stride, padding, dilation, _, output_padding, groups = record.args
    gradient = aten.convolution_backward(
        g.flatten(0, 1), like, weight.data, None, stride, padding, dilation, False, output_padding, groups, [True, False, False]
    )
    return torch.unflatten(gradient[0], 0, g.shape[:2])


def convolution(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """The folded transposed convolution for the input; for the weight one product with the unfolded input."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = record.args
    g = _only(cotangents)
    if x.tensor.ndim != 4 or transposed:
        yield from by_autograd(record, cotangents)
        return
    m, n, channels = g.shape[:3]
    if x.active:
        yield x, transposed_convolution(record, g, g.new_empty(1).expand(m * n, *x.shape[1:]))
    if weight.active:
        patches = functional.unfold(x.data, weight.shape[2:], *map(_pair, (dilation, padding, stride)))
        patches = torch.unflatten(patches, 1, (groups, -1))
        g = torch.unflatten(g.flatten(3), 2, (groups, channels // groups))
        yield weight, torch.einsum("mngop,ngkp->mgok", g, patches).reshape(m, *weight.shape)
    if bias is not None and bias.active:
        yield bias, _only(cotangents).sum((1, 3, 4))


def relu(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    yield record.args[0], _only(cotangents) * (record.out.data > 0)


def _unbroadcast(g: Tensor, shape: torch.Size) -> Tensor:
    """Sum (m, *larger) to (m, *shape), the transpose of broadcasting ``shape`` to the larger one."""
    extra = g.ndim - 1 - len(shape)
    dims = [1 + i for i in range(extra)]
    dims += [1 + extra + i for i, size in enumerate(shape) if size == 1 and g.shape[1 + extra + i] != 1]
    return g.sum(dims).reshape(len(g), *shape) if dims else g


def add(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    alpha = record.kwargs.get("alpha", 1)
    first, second = record.args[:2]
    g = _only(cotangents)
    if isinstance(first, Value) and first.active:
        yield first, _unbroadcast(g, first.shape)
    if isinstance(second, Value) and second.active:
        sign = -alpha if record.op in SUBTRACTIONS else alpha
        yield second, _unbroadcast(g if sign == 1 else g * sign, second.shape)


def scale(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """mul and div by a value that does not depend on weights. With both factors active, autograd."""
    first, second = record.args[:2]
    if (isinstance(second, Value) and second.active) or record.kwargs:
        yield from by_autograd(record, cotangents)
        return
    factor = second.data if isinstance(second, Value) else second
    g = _only(cotangents)
    g = g / factor if record.op in DIVISIONS else g * factor
    yield first, _unbroadcast(g, first.shape)


def mean(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    x, dims, *rest = record.args
    g = _only(cotangents)
    if record.kwargs:
        yield from by_autograd(record, cotangents)
        return
    dims = sorted(d % x.tensor.ndim for d in dims) if dims else range(x.tensor.ndim)
    if not (rest and rest[0]):
        for d in dims:
            g = g.unsqueeze(d + 1)
    size = record.out.tensor.numel() / max(x.tensor.numel(), 1)
    yield x, (g * size).expand(len(g), *x.shape)


def addmm(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """bias + a @ b, a (n, k), b (k, o)."""
    if record.kwargs:
        yield from by_autograd(record, cotangents)
        return
    g = _only(cotangents)
    *bias, a, b = record.args
    if bias and bias[0].active:
        yield bias[0], _unbroadcast(g, bias[0].shape)
    if a.active:
        yield a, g @ b.data.T
    if b.active:
        yield b, a.data.T @ g


def reshape(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    g = _only(cotangents)
    yield record.args[0], g.reshape(len(g), *record.args[0].shape)


def transpose(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    g = _only(cotangents)
    yield record.args[0], g.mT if g.ndim == 3 else g


def slice_settings(record: Record) -> tuple[Value, int, int | None, int | None, int]:
    """The value that is sliced, dimension, start, end, step."""
    defaults: tuple[Any, ...] = (0, None, None, 1)
    return (*record.args, *defaults[len(record.args) - 1 :])


def slice_(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    x, dim, start, end, step = slice_settings(record)
    g = _only(cotangents)
    gradient = g.new_zeros(len(g), *x.shape)
    aten.slice(gradient, dim % x.tensor.ndim + 1, start, end, step).copy_(g)
    yield x, gradient


def cat(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    parts = record.args[0]
    dim = record.args[1] if len(record.args) > 1 else 0
    g = _only(cotangents)
    if any(part.tensor.ndim != g.ndim - 1 for part in parts):  # cat skips legacy empty tensors with one dimension
        yield from by_autograd(record, cotangents)
        return
    dim %= g.ndim - 1
    for part, piece in zip(parts, torch.split(g, [part.shape[dim] for part in parts], dim + 1), strict=True):
        if part.active:
            yield part, piece


def average_pool(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    x, *settings = record.args
    g = _only(cotangents)
    if x.tensor.ndim != 4:
        yield from by_autograd(record, cotangents)
        return
    settings = [*settings, *([], 0, False, True, None)[len(settings) - 1 :]]
    folded = g.flatten(0, 1).contiguous()
    like = folded.new_empty(1).expand(len(folded), *x.shape[1:])
    yield x, aten.avg_pool2d_backward(folded, like, *settings).unflatten(0, g.shape[:2])


def max_pool(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """Send each cotangent to where the maximum was: ``indices`` (n, C, h, w) within an image of x."""
    x, places = record.args[0], record.outputs[1]
    assert places is not None
    indices, g = places.data, _only(cotangents)
    if g.device.type == "cuda":
        yield x, max_pool_by_offset(record, indices, g)
        return
    gradient = g.new_zeros(len(g), *x.shape).flatten(-2)
    gradient.scatter_add_(-1, indices.flatten(-2).expand(len(g), *indices.shape[:-2], -1), g.flatten(-2))
    yield x, gradient.reshape(len(g), *x.shape)


def _pair(setting: Sequence[int]) -> tuple[int, int]:
    """A setting for rows and columns, of which torch's operators take one for both."""
    return setting[0], setting[-1]


def max_pool_by_offset(record: Record, indices: Tensor, g: Tensor) -> Tensor:
    """The same sum, offset by offset within the windows: in a fixed order, unlike ``scatter_add_`` on a GPU.

    Overlapping windows add to the same pixel; those of one offset never do, so that each of the at most 9 sums is a plain one.
    """
    height, width = record.args[0].shape[-2:]
    defaults: tuple[Any, ...] = ([], [0], [1], False)
    kernel, stride, padding, dilation, _ = (*record.args[1:], *defaults[len(record.args) - 2 :])
    kernel, stride, padding, dilation = _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation)
    # First pixel of each window, in rows and columns; those of the padding are negative.
    first = [
        torch.arange(size, device=g.device) * step - before
        for size, step, before in zip(indices.shape[-2:], stride, padding, strict=True)
    ]
    # With its padding, and the part of windows beyond it if their number was rounded up.
    sides = [
        max(size + before, (count - 1) * step + (taps - 1) * gap + 1)
        for size, before, count, step, taps, gap in zip(
            (height, width), padding, indices.shape[-2:], stride, kernel, dilation, strict=True
        )
    ]
    gradient = g.new_zeros(*g.shape[:-2], *sides)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            place = (first[0] + row * dilation[0])[:, None] * width + first[1] + column * dilation[1]
            at = tuple(
                slice(offset * gap, offset * gap + (count - 1) * step + 1, step)
                for offset, gap, count, step in zip((row, column), dilation, indices.shape[-2:], stride, strict=True)
            )
            gradient[..., at[0], at[1]] += g * (indices == place)
    return gradient[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width]


def of_the_device(error: RuntimeError) -> bool:
    """Whether a GPU or one of its libraries has failed, in which case trying one by one is pointless."""
    return isinstance(error, torch.AcceleratorError) or any(
        name in str(error) for name in ("CUDA error", "_STATUS_", "cuDNN error")
    )


def by_autograd(record: Record, cotangents: list[Tensor | None]) -> Contributions:
    """Rule for any operator: run it again under autograd, with the chunk by vmap or, if that fails, one by one."""
    if torch.Tag.nondeterministic_seeded in record.op.tags:
        raise UntraceableError(f"{record.op} draws random numbers")
    leaves: dict[Value, Tensor] = {}

    def leaf(value: Value) -> Tensor:
        if not value.active:
            return value.data
        if value not in leaves:
            leaves[value] = value.data.requires_grad_()
        return leaves[value]

    with torch.enable_grad():
        args = substitute(record.args, leaf)
        if record.op._schema.is_mutable:  # leaves that require gradients must not be written to
            args = substitute(record.args, lambda value: leaf(value).clone())
        outputs = record.op(*args, **{key: substitute(arg, leaf) for key, arg in record.kwargs.items()})
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if g is not None and o.requires_grad]
    if not pairs:
        return
    outputs = [output for output, _ in pairs]
    chunk = [g for _, g in pairs]
    gradients: Sequence[Tensor | None]
    values = list(leaves)
    inputs = [leaves[value] for value in values]
    try:
        gradients = torch.autograd.grad(outputs, inputs, chunk, is_grads_batched=True, allow_unused=True, retain_graph=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if of_the_device(error):
            raise
        rows = [
            torch.autograd.grad(outputs, inputs, [g[i] for g in chunk], allow_unused=True, retain_graph=True)
            for i in range(len(chunk[0]))
        ]
        gradients = [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
    for value, gradient in zip(values, gradients, strict=True):
        if gradient is not None:
            yield value, gradient
