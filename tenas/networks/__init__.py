"""Networks: the masked supernets of a search, and the discrete networks of genotypes. Plain modules, images to logits."""

import os
from types import ModuleType
from typing import Protocol, TypeVar

from torch import Tensor, nn

from tenas.errors import TenasError, one_of
from tenas.networks.edge import Residual
from tenas.networks.flops import count_flops, count_parameters, on_meta, without_values
from tenas.networks.initialise import INITIALISERS, initialise, redrawn_whole, seeded
from tenas.references import load_module
from tenas.spaces import Genotype, Mask, Space, get_space, load_genotype

__all__ = [
    "INITIALISERS", "Network", "Residual", "Supernet", "SupernetCells", "count_flops", "count_parameters", "initialise",
    "on_meta", "redrawn_whole", "seeded", "without_values",
]  # fmt: skip


def builders(space: Space) -> ModuleType:
    """Get the module or object that builds a space's networks, with functions ``supernet``, ``cells`` and ``network``.

    Each takes (space, operators), the operators' names by cell type and edge. ``supernet(..., channels, cells, classes)`` and
    ``network(...)`` return modules that map images to logits, ``cells(..., channels)`` images to features. All have
    ``set_mask``; ``network`` takes ``stem`` and ``auxiliary`` if the space has them. For limits on parameters and
    multiply-adds the operators of each edge are in a ``tenas.networks.edge.Edge``. Raises TenasError if a function is missing.
    """
    what = f"module of {space.reference}'s networks"
    module = load_module(space.networks, what) if isinstance(space.networks, str) else space.networks
    missing = [name for name in ("supernet", "cells", "network") if not hasattr(module, name)]
    if missing:
        raise TenasError(f"The networks of {space.reference}, {space.networks!r}, have no function {missing[0]!r}.")
    return module


def operators_of(mask: Mask) -> list[tuple[str, ...]]:
    """The active operators of all edges, by cell type, then edge."""
    space = mask.space
    return [mask.operators(cell, edge) for cell in space.cell_types for edge in range(len(space.edges))]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise TenasError(f"A network needs at least 1 of {name}, as a whole number, not {size!r}.")


Output = TypeVar("Output", covariant=True)


class Body(Protocol[Output]):
    """The module that a space's builder returns."""

    @property
    def blocks(self) -> list[nn.Module]: ...

    def set_mask(self, mask: Mask) -> None: ...

    def __call__(self, images: Tensor) -> Output: ...


class _Masked(nn.Module):
    """A network with every operator of its space, which runs those that are active in a mask."""

    def __init__(self, space: Space, body: Body[Tensor], mask: Mask | None) -> None:
        super().__init__()
        self.space = space
        self.body = body
        self.set_mask(space.full_mask() if mask is None else mask)

    def set_mask(self, mask: Mask) -> None:
        """Change which operators are active. Weights stay: those of a pruned operator are kept, but not used."""
        if mask.space is not self.space:
            raise TenasError(f"The mask is of {mask.space.name}, the supernet of {self.space.name}.")
        self.mask = mask
        self.body.set_mask(mask)

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that compute the feature maps, in order: stem (if any), cells and reduction blocks."""
        return self.body.blocks

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


class Supernet(_Masked):
    """A masked supernet: images (n, 3, h, w) to logits (n, classes).

    An operator that the mask prunes is not executed; the active ones of an edge are averaged (softmax over equal
    architecture weights). Without a mask all operators are active.

    ``space``: a name or a space object. ``channels``: of the first stage. ``cells``: per stage for NAS-Bench-201, in all for
    DARTS (2: a normal and a reduction cell, TE-NAS's search network).
    Raises TenasError for an unknown space or a mask of another space.
    """

    def __init__(self, space: str | Space, mask: Mask | None = None, *, channels: int, cells: int, classes: int) -> None:
        space = get_space(space)
        _check_sizes(channels=channels, cells=cells, classes=classes)
        every = operators_of(space.full_mask())
        super().__init__(space, builders(space).supernet(space, every, channels=channels, cells=cells, classes=classes), mask)


class SupernetCells(_Masked):
    """The cells of a masked supernet without stem and classifier: images (n, channels, h, w) to features.

    The network on which TE-NAS's released code counts linear regions, with the BN-ReLU that ends the search network.
    For NAS-Bench-201 one cell, for DARTS a normal cell and a reduction cell of twice the channels.
    """

    def __init__(self, space: str | Space, mask: Mask | None = None, *, channels: int) -> None:
        space = get_space(space)
        _check_sizes(channels=channels)
        super().__init__(space, builders(space).cells(space, operators_of(space.full_mask()), channels=channels), mask)


class Network(nn.Module):
    """The discrete network of a genotype: images (n, 3, h, w) to logits (n, classes).

    ``genotype``: an object, the path of a JSON file, or the space's text. NAS-Bench-201's own networks have ``channels=16,
    cells=5``; DARTS's have ``channels=36, cells=20`` on CIFAR and ``channels=48, cells=14, stem="imagenet"`` on ImageNet.

    ``auxiliary`` adds DARTS's auxiliary head: in training mode the network then returns (logits, auxiliary logits), in
    evaluation mode logits only. Raises TenasError for a genotype of an unknown space, and for a stem or an auxiliary head that
    the space does not have.
    """

    def __init__(
        self,
        genotype: Genotype | str | os.PathLike[str],
        *,
        channels: int,
        cells: int,
        classes: int,
        auxiliary: bool = False,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        _check_sizes(channels=channels, cells=cells, classes=classes)
        self.genotype = load_genotype(genotype)
        space = self.genotype.space
        if stem not in space.stems:
            raise one_of(f"stem of a network of {space.name}", stem, space.stems)
        if auxiliary and not space.auxiliary:
            raise TenasError(f"The networks of {space.name} have no auxiliary head.")
        options = ({"auxiliary": True} if auxiliary else {}) | ({"stem": stem} if stem != "cifar" else {})
        mask = space.mask(self.genotype)
        body = builders(space).network(space, operators_of(mask), channels=channels, cells=cells, classes=classes, **options)
        self.body: Body[Tensor | tuple[Tensor, Tensor]] = body
        self.body.set_mask(mask)

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that compute the feature maps, in order: stem, cells and reduction blocks."""
        return self.body.blocks

    def set_drop_path(self, probability: float) -> None:
        """Zero each operator except identities, independently per sample, with ``probability`` in training mode.

        Draws from torch's default generator on the network's device: seed it before a step to reproduce them.
        Raises TenasError for a probability outside [0, 1), and if the space's networks have no drop-path.
        """
        if not 0 <= probability < 1:
            raise TenasError(f"The drop-path probability is {probability}; it must be at least 0 and below 1.")
        if not hasattr(self.body, "set_drop_path"):
            if probability:
                raise TenasError(f"The networks of {self.genotype.space.name} have no drop-path.")
            return
        self.body.set_drop_path(probability)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.body(images)
