"""Reverse rules of operators with compiled kernels, by the names in ``ntk_primitives``.

A rule takes the cotangent of a record's output from the plan and adds contributions to its inputs. It returns False, without any
change, to leave the record to plain torch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tenas.measures.kernel.compiled import passes
from tenas.measures.kernel.cotangents import (
    Contribution,
    Convolution,
    Cotangent,
    Coupling,
    Dense,
    Dots,
    FromTorch,
    Gathered,
    Products,
    Scattered,
)  # fmt: skip
from tenas.measures.kernel.geometry import Array
from tenas.measures.kernel.windows import average_share, window_at
from tenas.measures.kernel.workspace import LANES
from tenas.measures.ntk_rules import DIVISIONS, SUBTRACTIONS, BatchNorm, slice_settings
from tenas.measures.ntk_tape import Record, Value, aten

if TYPE_CHECKING:
    from tenas.measures.kernel.plan import Plan

# Placeholders for absent arrays of a compiled pass.
NO_TABLE = np.empty((0, 0))
NO_ROWS = np.empty((0, 0), np.int64)


def batch_norm(plan: Plan, record: Record) -> bool:
    norm = BatchNorm(record)
    bias = record.args[2]
    if any(output in plan.contributions for output in record.outputs[1:]) or (bias is not None and bias.active):
        return False
    if norm.weight is not None and norm.weight.active and norm.weight not in plan.columns:
        return False
    cotangent = plan.cotangent(record.out, plain=True)
    base, scale = cotangent.base, cotangent.gain
    convolution = None
    if len(norm.z.uses) == 1 and norm.z.producer is not None:
        convolution = _convolution_of(plan, norm.z.producer)
    products, dots = None, None
    if convolution is None:
        dots = Dots(cotangent.channel, norm.z)
        base.wants.append(dots)
    else:
        products = Products(cotangent.channel, convolution)
        base.wants.append(products)
    base.normalised = True
    mean, inverse, gain = np.empty((3, len(scale)))

    def renew() -> None:
        norm = BatchNorm(record)
        mean[:], inverse[:] = norm.mean.numpy(), norm.inverse_deviation.numpy()
        np.multiply(norm.gain().numpy(), scale, out=gain)

    plan.workspace.renew(renew)
    count, coupled = norm.count, norm.coupled
    shift, slope = np.zeros((2, len(gain) if coupled else 0, LANES), plan.workspace.dtype)
    coupling = Coupling(shift, slope, norm.z) if coupled else None
    gradient = plan.gradients[plan.columns[norm.weight]] if norm.weight in plan.columns else NO_TABLE
    weight = NO_TABLE if convolution is None else convolution.weight.reshape(len(gain), -1)
    offset = np.zeros(len(gain)) if convolution is None else convolution.bias

    def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
        rows = NO_ROWS if products is None else products.rows.reshape(weight.shape)
        passes.normalise(
            base.sums, cotangent.channel, 0 if dots is None else dots.row, rows, weight, offset, mean, inverse, gain,
            count, coupled, shift, slope, gradient, scale,
        )  # fmt: skip

    plan.steps.append(step)
    if norm.z.active:
        plan.add(norm.z, Dense(Cotangent(base, cotangent.channel, gain, coupling, products)))
    return True


def _convolution_of(plan: Plan, record: Record) -> Convolution | None:
    """The record as a convolution with a compiled kernel; None if it is none."""
    if record.op is not aten.convolution.default:
        return None
    if "convolution" not in record.cache:
        x, weight, bias, *_, groups = record.args
        window = window_at(record)
        record.cache["convolution"] = None
        if (
            window is not None
            and plan.fits(record)
            and (weight in plan.columns or not weight.active)
            and not (bias is not None and bias.active)
        ):
            table, offset = np.empty(weight.shape), np.zeros(weight.shape[0])

            def renew() -> None:
                table[:] = weight.data.numpy()
                if bias is not None:
                    offset[:] = bias.data.numpy()

            plan.workspace.renew(renew)
            record.cache["convolution"] = Convolution(x, record.out, window, groups, table, offset)
    found: Convolution | None = record.cache["convolution"]
    return found


def convolution(plan: Plan, record: Record) -> bool:
    convolution = _convolution_of(plan, record)
    if convolution is None:
        return False
    x, weight = record.args[:2]
    cotangent = plan.cotangent(convolution.out)
    products = cotangent.products
    if products is None or products.convolution is not convolution:
        cotangent = plan.cotangent(convolution.out, plain=True)
        products = Products(cotangent.channel, convolution)
        if weight.active:
            cotangent.base.wants.append(products)
    if weight.active:
        _weight_gradient(plan, cotangent, products, plan.gradients[plan.columns[weight]])
    if x.active:
        plan.add(x, Gathered(cotangent, convolution))
    return True


def _weight_gradient(plan: Plan, cotangent: Cotangent, products: Products, gradient: Array) -> None:
    """Add a step that adds to a convolution's gradient, (elements, lanes), from the products of its cotangent."""
    weight = products.convolution.weight
    table = weight.reshape(len(weight), -1)
    gradient = gradient.reshape(*table.shape, LANES)
    if cotangent.coupling is None:
        shift = slope = np.zeros((0, LANES), plan.workspace.dtype)
        patches, outer = NO_TABLE, NO_TABLE
    else:
        shift, slope, _ = cotangent.coupling
        patches, outer = _forward_products(plan, products.convolution)

    def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
        rows = products.rows.reshape(table.shape)
        passes.weight_gradient(cotangent.base.sums, rows, cotangent.gain, shift, slope, patches, outer, gradient)

    plan.steps.append(step)


def _forward_products(plan: Plan, convolution: Convolution) -> tuple[Array, Array]:
    """Sums over the batch of patch and of z * patch, for a convolution's output z: (channels, elements) each."""
    window, weight = convolution.window, convolution.weight
    patches, products = np.empty((2, *weight.shape[:2], weight[0, 0].size))

    def renew() -> None:
        z, x = (value.data.contiguous().numpy() for value in (convolution.out, convolution.x))
        patches[:], products[:] = passes.forward_products(
            plan.template, z, x, convolution.groups, window.stride, window.kernel, window.padding, window.dilation
        )

    plan.workspace.renew(renew)
    return patches.reshape(len(weight), -1), products.reshape(len(weight), -1)


def relu(plan: Plan, record: Record) -> bool:
    out = record.out
    contributions: list[Contribution] = plan.contributions[out]
    pulled = [c for c in contributions if not isinstance(c, FromTorch) and c.mask is None]
    mask = plan.workspace.same_rectified(out)
    for contribution in pulled if len(pulled) == len(contributions) else [Dense(plan.cotangent(out))]:
        plan.add(record.args[0], dataclasses.replace(contribution, mask=mask))
    return True


def add(plan: Plan, record: Record) -> bool:
    first, second = record.args[:2]
    out = record.out
    alpha = record.kwargs.get("alpha", 1) * (-1 if record.op in SUBTRACTIONS else 1)
    terms = [(v, f) for v, f in ((first, 1), (second, alpha)) if isinstance(v, Value) and v.active]
    if any(value.shape != out.shape for value, _ in terms):
        return False
    cotangent = plan.cotangent(out, plain=True)
    for value, factor in terms:
        plan.add(value, Dense(_scaled(plan, cotangent, factor)))
    return True


def _scaled(plan: Plan, cotangent: Cotangent, factor: float) -> Cotangent:
    """Cotangent of a value that is this one times ``factor``. Only without coupling."""
    gain = cotangent.gain if factor == 1 else plan.workspace.scaled(cotangent.gain, factor)
    return Cotangent(cotangent.base, cotangent.channel, gain)


def scale(plan: Plan, record: Record) -> bool:
    first, second = record.args[:2]
    if isinstance(second, Value):
        if second.active or second.tensor.numel() != 1:
            return False
        second = second.data.item()
        plan.reusable = False
    if record.kwargs or first.shape != record.out.shape:
        return False
    cotangent = plan.cotangent(record.out, plain=True)
    plan.add(first, Dense(_scaled(plan, cotangent, 1 / second if record.op in DIVISIONS else second)))
    return True


def cat(plan: Plan, record: Record) -> bool:
    parts = record.args[0]
    if len(record.args) < 2 or record.args[1] % 4 != 1 or any(part.tensor.ndim != 4 for part in parts):
        return False
    cotangent = plan.cotangent(record.out, plain=True)
    start = 0
    for part in parts:
        stop = start + part.shape[1]
        if part.active:
            piece = Cotangent(cotangent.base, cotangent.channel + start, cotangent.gain[start:stop])
            plan.add(part, Dense(piece))
        start = stop
    return True


def slice_(plan: Plan, record: Record) -> bool:
    x, dim, start, _, step = slice_settings(record)
    dim %= 4
    if step != 1 or (dim < 2 and record.out.shape != x.shape):
        return False
    start = start or 0
    start = max(0, start + x.shape[dim]) if start < 0 else start
    cotangent = plan.cotangent(record.out, plain=True)
    plan.add(x, Dense(cotangent, y=start if dim == 2 else 0, x=start if dim == 3 else 0))
    return True


def average_pool(plan: Plan, record: Record) -> bool:
    x, out = record.args[0], record.out
    window = window_at(record)
    if window is None:
        return False
    channels = x.shape[1]
    pooling = Convolution(x, out, window, channels, np.ones((channels, 1, *window.kernel)), np.zeros(channels))
    share = average_share(window, x.shape[2:], *record.args[1:])
    plan.add(x, Gathered(plan.cotangent(out), pooling, share=share))
    return True


def max_pool(plan: Plan, record: Record) -> bool:
    out, indices = record.outputs
    if out is None or indices is None:
        return False
    plan.add(record.args[0], Scattered(plan.cotangent(out), indices))
    return True
