"""Symbolic cotangents of a plan: arrays, multiples of arrays, and contributions to them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from tenas.measures.kernel.geometry import Array, Grid, Window
from tenas.measures.kernel.instructions import Address, Images
from tenas.measures.ntk_tape import Value


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory for cotangents: of all samples or, as scratch memory, of one at a time.

    ``tensor``: (n or 1, channels, height + 2 halo, width + 2 halo, lanes), a different one each time the plan is loaded; so
    ``address`` refers to a region (``workspace``).
    """

    channels: int
    grid: Grid
    samples: bool
    address: Address
    tensor: Tensor = dataclasses.field(init=False)


@dataclasses.dataclass(eq=False)
class Convolution:
    """A convolution's input, output and geometry, weight (channels, channels / groups, height, width) and bias in float64."""

    x: Value
    out: Value
    window: Window
    groups: int
    weight: Array
    bias: Array

    def by_group(self, array: Array) -> Array:
        """View an array of the weight's shape as (groups, channels of a group, input channels of a group, height, width)."""
        return array.reshape(self.groups, -1, *array.shape[1:])


@dataclasses.dataclass(eq=False)
class Products:
    """The sums of g * patch for one convolution: row ``rows[c, e]`` of the base's sums for weight element (c, e).

    ``channel``: first channel of the convolution's output in the base. The rows are set when the base's program is made.
    """

    channel: int
    convolution: Convolution
    rows: Array = dataclasses.field(init=False)


@dataclasses.dataclass(eq=False)
class Dots:
    """The sums of g * z, z (n, C, H, W): rows ``row`` to ``row`` + C of the base's sums, set when its program is made."""

    channel: int
    z: Value
    row: int = 0


@dataclasses.dataclass(eq=False)
class Base:
    """A value's cotangents in their own array, and the requested sums over the batch.

    ``array``: used from step ``created`` to step ``last``.
    ``sums``: (rows, lanes) in float64; the first rows are the plain sums of each channel, if a batch normalisation
    needs them (``normalised``). ``part``: those of some samples. Set by the base's program.
    """

    channels: int
    grid: Grid
    created: int
    last: int = 0
    wants: list[Products | Dots] = dataclasses.field(default_factory=list)
    normalised: bool = False
    array: Buffer = dataclasses.field(init=False)
    part: Array = dataclasses.field(init=False)
    sums: Array = dataclasses.field(init=False)

    def interior(self) -> Tensor:
        """The array without its border."""
        h = self.grid.halo
        return self.array.tensor[:, :, h : h + self.grid.height, h : h + self.grid.width]


def images_of(channels: int, grid: Grid) -> Images:
    """Extent of an instruction in arrays of a grid."""
    return Images(channels, grid.height, grid.width)


class Coupling(NamedTuple):
    """Term of a batch normalisation in a cotangent: shift + slope * z, shift and slope (C, lanes), z (n, C, H, W)."""

    shift: Array
    slope: Array
    z: Value


@dataclasses.dataclass(eq=False)
class Cotangent:
    """Cotangents of a value in terms of an array: gain * base + shift + slope * z; without coupling gain * base.

    ``channel``: first of the value's channels in the base. ``gain``: (C,), the same for all lanes. ``products``: those of the
    convolution with the value as output, if they have been summed.
    """

    base: Base
    channel: int
    gain: Array
    coupling: Coupling | None = None
    products: Products | None = None


# Contributions to a cotangent. ``mask``: the output of a ReLU; nothing is contributed where it is zero.


@dataclasses.dataclass(eq=False)
class Dense:
    """A cotangent itself, starting at pixel (y, x) of the value."""

    cotangent: Cotangent
    mask: Value | None = None
    y: int = 0
    x: int = 0


@dataclasses.dataclass(eq=False)
class Gathered:
    """Contribution through the transpose of a convolution or average pooling.

    A pooling has a weight of ones, and ``share`` (h, w): 1 / the number of pixels in each average.
    """

    cotangent: Cotangent
    convolution: Convolution
    mask: Value | None = None
    share: Array | None = None


@dataclasses.dataclass(eq=False)
class Scattered:
    """Contribution through the transpose of a max pooling, at the position of each maximum."""

    cotangent: Cotangent
    indices: Value
    mask: Value | None = None


class FromTorch:
    """Contribution of rules in plain torch, stored by value when the pass runs."""


Pulled = Dense | Gathered | Scattered
Contribution = Pulled | FromTorch
