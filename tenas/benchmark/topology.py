"""Isomorphic genotypes: the same network, written differently, as far as the space defines it."""

from collections.abc import Iterable

from tenas.spaces import Genotype


def canonical_form(genotype: Genotype) -> str | None:
    """A text shared by isomorphic genotypes (``Space.canonical_form``); None if their space defines none."""
    return genotype.space.canonical_form(genotype)


def isomorphic(genotype: Genotype, archs: Iterable[str]) -> list[int] | None:
    """Indices of the genotypes in ``archs`` that are isomorphic to this one, itself included; None if that is not defined."""
    space, form = genotype.space, canonical_form(genotype)
    if form is None:
        return None
    return [place for place, arch in enumerate(archs) if space.canonical_form(space.parse(arch)) == form]
