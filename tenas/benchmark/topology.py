"""Which genotypes are the same network, written differently: as far as their space knows."""

from collections.abc import Iterable

from tenas.spaces import Genotype


def canonical_form(genotype: Genotype) -> str | None:
    """A text that isomorphic genotypes share (``Space.canonical_form``); None where their space has no such text."""
    return genotype.space.canonical_form(genotype)


def isomorphic(genotype: Genotype, archs: Iterable[str]) -> list[int] | None:
    """Places in ``archs``, texts of the genotype's space, of those isomorphic to it, itself among them; None where not known."""
    space, form = genotype.space, canonical_form(genotype)
    if form is None:
        return None
    return [place for place, arch in enumerate(archs) if space.canonical_form(space.parse(arch)) == form]
