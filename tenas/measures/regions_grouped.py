"""Count linear regions of many networks side by side in one (tenas.networks.grouped), on their device."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from tenas.measures.common import measuring
from tenas.measures.regions import PIXELS, SATURATED, SaturatedWarning
from tenas.measures.sizes import fitting, sizes
from tenas.networks.edge import Edge
from tenas.networks.grouped import Weighted
from tenas.networks.observer import Observer, plain_name

WORD = 64  # bits of a word of int64
# Bytes of each unit while a word is packed: a power of two, and again where it is summed.
PACKING = 16


class _Sides(Observer):
    """Signs of the units of each ReLU, for the networks that run it: (samples, networks, units) booleans.

    An operator that is pruned in some of the networks runs for all (tenas.networks.grouped). ReLUs in it, and those that only it
    reads, are not part of the patterns of these networks.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._found: list[tuple[Tensor, Tensor | None]] = []  # outputs, with the networks that run them; None for all
        self._inside: Tensor | None = None
        # By id, which is unique as long as the tensor is kept.
        self._read: dict[int, tuple[Tensor, Tensor | None]] = {}

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        if plain_name(operator) == "relu":
            self._found.append((out, self._inside))

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[Self]:
        """Track the edges' operators that a pass of ``network`` enters."""

        def enter(operator: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            runs = operator.runs if isinstance(operator, Weighted) else None
            x = inputs[0]
            _, earlier = self._read.get(id(x), (x, runs))
            self._read[id(x)] = x, None if runs is None or earlier is None else earlier | runs
            self._inside = runs

        def leave(*_: object) -> None:
            self._inside = None

        operators = [operator for edge in network.modules() if isinstance(edge, Edge) for operator in edge.values()]
        handles = [operator.register_forward_pre_hook(enter) for operator in operators]
        handles += [operator.register_forward_hook(leave) for operator in operators]
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def sides(self) -> list[Tensor]:
        found = []
        for out, inside in self._found:
            side = (out > 0).reshape(len(out), self.count, -1)
            runs = self._read.get(id(out), (out, None))[1] if inside is None else inside
            found.append(side if runs is None else side & runs[:, None])
        return found


def packed(sides: Tensor) -> Tensor:
    """Booleans (n, R, units) as words, (words, n, R) int64: exact, a sum of different powers of two."""
    powers = torch.ones((), dtype=torch.int64, device=sides.device) << torch.arange(WORD, device=sides.device)
    return torch.stack([(part * powers[: part.shape[2]]).sum(2) for part in sides.split(WORD, 2)])


def distinct(words: Tensor) -> Tensor:
    """Number of distinct patterns of each network: (words, n, R) to (R,). Exact: sorted by all words, changes counted."""
    order: Tensor | None = None
    for word in words.flip(0):
        step = (word if order is None else word.gather(0, order)).sort(dim=0, stable=True).indices
        order = step if order is None else order.gather(0, step)
    assert order is not None
    ranked = words.gather(1, order.expand(len(words), -1, -1))
    return (ranked[:, 1:] != ranked[:, :-1]).any(0).sum(0) + 1


@functools.partial(measuring, drawn=True)
def counts(network: nn.Module, blocks: Sequence[Tensor], count: int) -> Sequence[int]:
    """``linear_regions`` of ``count`` networks side by side: one pass per block for all; patterns are counted on their device.

    The signs are those of each network alone, except for units within rounding of zero.

    Args:
        network: of ``grouped``, from (n, count * c, h, w).
        blocks: of inputs, those of the networks side by side.
        count: number of networks.
    """
    found = []
    for block in blocks:
        with torch.no_grad(), _Sides(count).following(network) as seen:
            network(block)
        if not (sides := seen.sides()):
            return [1] * count
        found.append(packed(torch.cat(sides, 2)))
    numbers: list[int] = distinct(torch.cat(found, 1)).tolist()
    total = sum(map(len, blocks))
    if max(numbers) >= SATURATED * total:
        warnings.warn(
            f"Nearly each of the {total} inputs lies in a linear region of its own: saturated, use more or smaller inputs.",
            SaturatedWarning,
            stacklevel=3,
        )
    return numbers


def values(network: nn.Module, inputs: tuple[Sequence[Tensor], ...], count: int) -> Sequence[float]:
    """``linear_regions`` of ``count`` networks side by side. ``inputs``: (blocks,)."""
    (blocks,) = inputs
    return counts(network, blocks, count)


def together(network: nn.Module, inputs: tuple[Sequence[Tensor], ...]) -> int:
    """Number of networks like this one side by side on a GPU: those that fit in a constant budget, by the shapes of one.

    1 for whole images, whose patterns are long: most are distinct at the first ReLU (``told_apart_at_once``).
    """
    (blocks,) = inputs
    if blocks[0].shape[2:].numel() >= PIXELS:
        return 1
    n = max(map(len, blocks))
    with _Sides(1) as seen:
        found = sizes(network, (n, *blocks[0].shape[1:]))
    units = sum(side.shape[2] for side in seen.sides())
    return fitting(found.total + 2 * n * units + PACKING * n * min(units, WORD))
