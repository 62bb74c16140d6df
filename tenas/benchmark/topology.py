"""Isomorphic genotypes: the same network, written differently, as far as the space defines it."""

from collections.abc import Iterable
from functools import lru_cache

from tenas.spaces import Genotype
from tenas.spaces.base import Space


def canonical_form(genotype: Genotype) -> str | None:
    """A text shared by isomorphic genotypes (``Space.canonical_form``); None if their space defines none."""
    return genotype.space.canonical_form(genotype)


def isomorphic(genotype: Genotype, archs: Iterable[str]) -> list[int] | None:
    """Indices of the genotypes in ``archs`` that are isomorphic to this one, itself included; None if that is not defined."""
    space, form = genotype.space, canonical_form(genotype)
    if form is None:
        return None
    return [place for place, other in enumerate(_forms(space, tuple(archs))) if other == form]


@lru_cache(maxsize=4)
def _forms(space: Space, archs: tuple[str, ...]) -> list[str | None]:
    """Canonical forms of a table's cells: half a second for NAS-Bench-201, so once for all cells that are looked up."""
    return [space.canonical_form(space.parse(arch)) for arch in archs]
