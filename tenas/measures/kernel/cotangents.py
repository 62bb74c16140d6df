"""What a plan knows of cotangents before it computes any: arrays, what is a multiple of them, and what flows into them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from tenas.measures.kernel.geometry import Array, Grid, Window
from tenas.measures.kernel.instructions import Address, Images
from tenas.measures.ntk_tape import Value


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory for cotangents: of all samples or, as scratch, of one at a time.

    ``tensor``: (n or 1, channels, height + 2 halo, width + 2 halo, lanes), another one each time the plan is loaded, wherefore
    ``address`` is of a region (``workspace``).
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
        """An array of the weight's shape as (groups, channels of a group, input channels of a group, height, width)."""
        return array.reshape(self.groups, -1, *array.shape[1:])


@dataclasses.dataclass(eq=False)
class Products:
    """The sums of g * patch for one convolution: row ``rows[c, e]`` of the base's sums for weight element (c, e).

    ``channel``: where the convolution's output starts in the base. The rows are known when the base's program is made.
    """

    channel: int
    convolution: Convolution
    rows: Array = dataclasses.field(init=False)


@dataclasses.dataclass(eq=False)
class Dots:
    """The sums of g * z, z (n, C, H, W): rows ``row`` to ``row`` + C of the base's sums, known when its program is made."""

    channel: int
    z: Value
    row: int = 0


@dataclasses.dataclass(eq=False)
class Base:
    """A value's cotangents in an array of their own, and the sums over the batch that are wanted of them.

    ``array``: used from step ``created`` to step ``last``.
    ``sums``: (rows, lanes) in float64, the first rows the plain sums of each channel, if a batch normalisation
    asks for them (``normalised``); ``part``: those of some samples. All three come with the base's program.
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
    """What an instruction goes over in arrays of a grid."""
    return Images(channels, grid.height, grid.width)


class Coupling(NamedTuple):
    """What batch normalisation adds to a cotangent: shift + slope * z, shift and slope (C, lanes), z (n, C, H, W)."""

    shift: Array
    slope: Array
    z: Value


@dataclasses.dataclass(eq=False)
class Cotangent:
    """gain * base + shift + slope * z: the cotangents of a value, in terms of an array. No coupling: only scaled.

    ``channel`` is where the value's channels start in the base. ``gain`` (C,) doesn't depend on the lane.
    ``products``: of the convolution whose output the value is, if they have been summed.
    """

    base: Base
    channel: int
    gain: Array
    coupling: Coupling | None = None
    products: Products | None = None


# The contributions to a cotangent. ``mask``: the output of a ReLU, where it is zero nothing is contributed.


@dataclasses.dataclass(eq=False)
class Dense:
    """A cotangent itself, from pixel (y, x) of the value on."""

    cotangent: Cotangent
    mask: Value | None = None
    y: int = 0
    x: int = 0


@dataclasses.dataclass(eq=False)
class Gathered:
    """Through the transpose of a convolution or an average pooling (a weight of ones; ``share`` (h, w) is 1 / the number of
    pixels behind each average)."""

    cotangent: Cotangent
    convolution: Convolution
    mask: Value | None = None
    share: Array | None = None


@dataclasses.dataclass(eq=False)
class Scattered:
    """Through the transpose of a max pooling: to where each maximum was."""

    cotangent: Cotangent
    indices: Value
    mask: Value | None = None


class FromTorch:
    """What the rules in plain torch leave under the value's name when the pass runs."""


Pulled = Dense | Gathered | Scattered
Contribution = Pulled | FromTorch
