"""Choose the cells that a round measures: a seeded sample without repetition, within limits, or a user's list. No torch."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tenas.errors import TenasError
from tenas.files import read_table
from tenas.scoring.subjects import Cell, Cells
from tenas.search.limits import Limits
from tenas.search.prune import pruned_within
from tenas.search.shortlist import read_shortlist
from tenas.seeds import derive_seed
from tenas.spaces import get_space
from tenas.spaces.base import Genotype, Mask, Space, operators_left

# A mask of at most that many cells is enumerated and shuffled; from a larger one cells are drawn until there are enough.
LISTED = 200_000
# Consecutive draws without a new cell, after which drawing ends.
TRIES = 20_000
# The same for cells found by random pruning.
PRUNINGS = 50


def sample_cells(mask: Mask, count: int | None, seed: int, limits: Limits | None = None) -> Cells:
    """Sample cells of a mask uniformly, within limits; all of them if ``count`` is None.

    Cells are numbered from 1 in the order of their drawing, so a smaller sample is the beginning of a larger one. If fewer than
    ``count`` fit, all of them are returned. In a mask too large to enumerate (LISTED), with limits that fewer than one cell in
    TRIES meets, the remaining cells are found by random pruning, which is not uniform.

    Raises TenasError if no cell fits.
    """
    generator = np.random.default_rng(seed)
    if mask.space.size(mask) <= LISTED:
        fitting = [genotype for genotype in mask.space.genotypes(mask) if limits is None or limits.fits(genotype)]
        order = range(len(fitting)) if count is None else generator.permutation(len(fitting))[:count]
        found = [fitting[place] for place in order]
    else:
        if count is None:
            raise TenasError(
                f"{mask.space.name} has {mask.space.size(mask):,} cells, too many to measure all: give 'sample' a number."
            )
        found = list(_drawn(mask, count, generator, limits))
    if not found:
        raise TenasError(f"No cell of {mask.space.name} within the limits was found.")
    return Cells(mask.space, tuple(Cell(number, genotype.arch) for number, genotype in enumerate(found, start=1)))


def _drawn(mask: Mask, count: int, generator: np.random.Generator, limits: Limits | None) -> Iterator[Genotype]:
    seen: set[str] = set()
    tries = 0
    while len(seen) < count and tries < TRIES:
        genotype = mask.space.random_genotype(mask, generator)
        arch = genotype.arch
        tries += 1
        if arch not in seen and (limits is None or limits.fits(genotype)):
            seen.add(arch)
            tries = 0
            yield genotype
    tries = 0
    while limits is not None and len(seen) < count and tries < PRUNINGS and limits.reachable(mask):
        genotype = _pruned(mask, generator, limits)
        tries += 1
        if genotype.arch not in seen:
            seen.add(genotype.arch)
            tries = 0
            yield genotype


def _pruned(mask: Mask, generator: np.random.Generator, limits: Limits) -> Genotype:
    """Prune a mask at random, within limits, to a single cell."""
    space = mask.space
    for round in (space.operators_round(1, operators_left(mask), len(space.operators)), *space.edges_rounds(2)):
        trials = tuple(space.candidates(mask, round))
        ranks = [generator.permutation(len(trials))[None] + 1.0]
        (gone,) = pruned_within(ranks, space.rivals(trials, round), "rank_sum", trials, mask, limits)
        mask = mask.without(trial for trial, go in zip(trials, gone, strict=True) if go)
    return space.genotype(mask)


def listed_cells(path: str | os.PathLike[str], space: Space, limits: Limits | None = None) -> Cells:
    """Read the cells of a user's CSV file with a column ``arch``, in its order, without repetition, within the limits."""
    archs: dict[str, None] = {}
    for line, row in enumerate(read_table(path, ("arch",), "list of cells", given=True), start=2):
        try:
            archs.setdefault(space.parse(row["arch"]).arch)
        except TenasError as error:
            raise TenasError(f"The list of cells {path}, line {line}: {error}") from error
    kept = [arch for arch in archs if limits is None or limits.fits(space.parse(arch))]
    if not kept:
        raise TenasError(f"The list of cells {path} has no cell within the limits.")
    return Cells(space, tuple(Cell(number, arch) for number, arch in enumerate(kept, start=1)))


def cells_of_round(
    settings: Mapping[str, Any], round: int, seed: int, before: str | os.PathLike[str], limits: Limits | None = None
) -> Cells:
    """Choose the cells of a round: drawn from the mask ``before``, listed in a file, or those of the shortlist ``before``."""
    space, sample = get_space(settings["space"]), settings["rounds"][round - 1]["sample"]
    if sample is None:
        return read_shortlist(before, space)
    if isinstance(sample, str) and sample != "all":
        return listed_cells(sample, space, limits)
    mask = space.read_mask(before)
    return sample_cells(mask, None if sample == "all" else sample, derive_seed(seed, round, "sample"), limits)
