"""Sampling cells: seeded, without repetition, uniform, within limits; and how many cells a mask spans."""

from collections import Counter

import numpy as np
import pytest
from helpers.engine import DARTS, NAS, OPERATORS, chain_space, kept_space, random_mask, spanned, with_edges_pruned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tenas.errors import TenasError
from tenas.files import write_csv, write_json
from tenas.scoring.subjects import Cell
from tenas.search import sample as sampling
from tenas.search.limits import Limits
from tenas.search.sample import LISTED, cells_of_round, listed_cells, sample_cells
from tenas.search.shortlist import read_shortlist, shortlist_json
from tenas.seeds import derive_seed
from tenas.settings import search_settings
from tenas.spaces import CellSpace, Space
from tenas.spaces.sums import Sums

THREE = CellSpace("three", dict(list(OPERATORS.items())[1:]), nodes=3)
SPACES = [
    THREE,
    CellSpace("sparse", OPERATORS, nodes=4, edges=[(1, 0), (2, 1), (3, 0), (3, 2)]),
    kept_space(nodes=5, kept=2, operators=2, cell_types=["normal"]),
    kept_space(nodes=4, kept=1, operators=2),
    chain_space(4),
]
ids = {"ids": lambda space: f"{space.name}-{space.nodes}"}


@pytest.mark.parametrize("space", SPACES, **ids)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_size_of_a_mask_is_the_number_of_its_cells(space, seed):
    generator = np.random.default_rng(seed)
    for mask in (space.full_mask(), random_mask(space, generator), with_edges_pruned(space.full_mask(), generator)):
        listed = [genotype.arch for genotype in space.genotypes(mask)]
        assert space.size(mask) == len(listed) == len(set(listed))
        assert set(listed) == spanned(mask)


def test_sizes_of_the_published_spaces():
    assert NAS.size(NAS.full_mask()) == 15_625
    # Two inputs a node of 2, 3, 4 and 5, eight operators on each: (8^2)^4 x 1 x 3 x 6 x 10 for each of two cell types.
    assert DARTS.size(DARTS.full_mask()) == (8**8 * 180) ** 2


@pytest.mark.parametrize("space", [*SPACES, NAS, DARTS], **ids)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_a_sample_is_seeded_has_no_repetition_and_begins_every_larger_one(space, seed):
    mask = space.full_mask() if space is DARTS else random_mask(space, np.random.default_rng(seed))
    count = min(12, space.size(mask))
    drawn = sample_cells(mask, count, seed).cells
    assert [cell.number for cell in drawn] == list(range(1, count + 1))
    assert len({cell.arch for cell in drawn}) == count
    assert sample_cells(mask, count, seed).cells == drawn
    for fewer in range(1, count):
        assert sample_cells(mask, fewer, seed).cells == drawn[:fewer]
    chosen = {
        (number, *choice) for cell in drawn for number, cells in enumerate(space.parse(cell.arch).cells) for choice in cells
    }
    for number, target, source, operator in chosen:
        assert operator in mask.operators(space.cell_types[number], space.edges.index((target, source)))
    if space.size(mask) > 200:
        assert sample_cells(mask, count, seed + 1).cells != drawn


UNEVEN = kept_space(nodes=5, kept=2, operators=3, cell_types=["normal"])


def uneven_mask(space: Space):
    """One operator on some edges and three on others: an edge that has more to choose from is in more cells."""
    return random_mask(space, np.random.default_rng(5), 0.5)


@pytest.mark.parametrize("space", [THREE, UNEVEN, kept_space(nodes=4, kept=1, operators=3, cell_types=["normal"])], **ids)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
@pytest.mark.slow
def test_every_cell_is_as_likely_as_any_other(space, listed, monkeypatch):
    """Chi-square over all cells that the mask spans: of the first of a sample, and of single draws."""
    mask = space.full_mask() if space is THREE else uneven_mask(space)
    cells = sorted(spanned(mask))
    assert 10 < len(cells) < 1000
    if listed:
        # A third of the cells, many times: each as often as any other, and as often the first.
        counts: Counter = Counter()
        size = len(cells) // 3 + 1
        for seed in range(400):
            counts.update(cell.arch for cell in sample_cells(mask, size, seed).cells)
        # Draws within a sample are without repetition, which only makes counts more even: a bound on what is too uneven.
        statistic = sum((counts[arch] - 400 * size / len(cells)) ** 2 for arch in cells) / (400 * size / len(cells))
        assert statistic < 1.5 * len(cells)
    else:
        generator = np.random.default_rng(11)
        draws = 40 * len(cells)
        counts = Counter(space.random_genotype(mask, generator).arch for _ in range(draws))
        assert set(counts) == set(cells)
        assert chisquare([counts[arch] for arch in cells]).pvalue > 1e-4


def test_all_cells():
    assert {cell.arch for cell in sample_cells(NAS.full_mask(), None, 0).cells} == {g.arch for g in NAS.genotypes()}
    # A sample that is larger than what is there is all of it.
    assert len(sample_cells(THREE.full_mask(), 1000, 0).cells) == 27
    with pytest.raises(TenasError, match=r"darts has [\d,]+ cells, too many to measure all: give 'sample' a number"):
        sample_cells(DARTS.full_mask(), None, 0)


def limits_of(space: Space, share: float) -> Limits:
    """A limit that about this share of the cells is within."""
    generator = np.random.default_rng(3)
    shape = (len(space.cell_types), len(space.edges), len(space.operators))
    costs = tuple(tuple(tuple(map(int, row)) for row in rows) for rows in generator.integers(0, 1000, shape))
    sums = Sums(space, 0, costs)
    figures = [sums.of(space.random_genotype(space.full_mask(), generator)) for _ in range(400)]
    return Limits(space, {"parameters": (sums, float(np.quantile(figures, share)))})


@pytest.mark.parametrize("space", [NAS, DARTS], **ids)
def test_a_sample_within_limits(space):
    mask = space.full_mask()
    limits = limits_of(space, 0.1)
    drawn = sample_cells(mask, 50, 0, limits).cells
    assert len({cell.arch for cell in drawn}) == 50
    assert all(limits.fits(space.parse(cell.arch)) for cell in drawn)
    assert sample_cells(mask, 20, 0, limits).cells == drawn[:20]


def test_all_cells_within_limits():
    limits = limits_of(NAS, 0.05)
    fitting = {genotype.arch for genotype in NAS.genotypes() if limits.fits(genotype)}
    assert 100 < len(fitting) < 2000
    assert {cell.arch for cell in sample_cells(NAS.full_mask(), None, 0, limits).cells} == fitting
    assert {cell.arch for cell in sample_cells(NAS.full_mask(), 5000, 1, limits).cells} == fitting
    ((sums, _),) = limits.sums.values()
    with pytest.raises(TenasError, match="No cell of nas-bench-201 within the limits was found"):
        sample_cells(NAS.full_mask(), 5, 0, Limits(NAS, {"parameters": (sums, -1.0)}))


def test_spaces_too_large_to_list_are_drawn_from_and_the_same_cells_are_likely(monkeypatch):
    """A space below and above the bound: the way of drawing differs, what can be drawn does not."""
    assert DARTS.size(DARTS.full_mask(["none"])) > LISTED
    mask = NAS.full_mask(["none"])
    monkeypatch.setattr(sampling, "LISTED", 10)
    drawn = sample_cells(mask, 200, 0).cells
    assert len({cell.arch for cell in drawn}) == 200
    assert sample_cells(mask, 50, 0).cells == drawn[:50]
    # Of a space that is nearly used up all are found.
    assert {cell.arch for cell in sample_cells(THREE.full_mask(), 27, 0).cells} == spanned(THREE.full_mask())
    # More than there are: given up, with what was found.
    monkeypatch.setattr(sampling, "TRIES", 500)
    assert len(sample_cells(THREE.full_mask(), 28, 0).cells) == 27


@pytest.mark.parametrize("edges", [False, True], ids=["operators", "edges"])
def test_limits_that_next_to_nothing_meets_are_met_all_the_same(edges, monkeypatch):
    """One operator of all costs nothing: a handful of the 1e18 DARTS cells fits, and no draw would ever be one of them."""
    monkeypatch.setattr(sampling, "TRIES", 50)
    generator = np.random.default_rng(0)
    costs = generator.integers(1, 100, (2, 14, 8))
    costs[:, :, 5] = 0
    if edges:
        costs[0, 9:, 5] = [0, 0, 7, 9, 9]  # of the last node of the normal cell, two edges are free
    else:
        costs[1, 3, 5:7] = 0  # one edge has two free operators
    sums = Sums(DARTS, 10, tuple(tuple(tuple(map(int, row)) for row in rows) for rows in costs))
    limits = Limits(DARTS, {"parameters": (sums, 10)})
    drawn = sample_cells(DARTS.full_mask(), 20, 0, limits).cells
    assert len({cell.arch for cell in drawn}) == 20
    assert all(sums.of(DARTS.parse(cell.arch)) == 10 for cell in drawn)
    assert sample_cells(DARTS.full_mask(), 5, 0, limits).cells == drawn[:5]
    with pytest.raises(TenasError, match="No cell of darts within the limits"):
        sample_cells(DARTS.full_mask(), 5, 0, Limits(DARTS, {"parameters": (sums, 9)}))


# --- lists of one's own, and the cells of a round


def test_a_list_of_ones_own(tmp_path):
    archs = [cell.arch for cell in sample_cells(NAS.full_mask(), 30, 0).cells]
    path = tmp_path / "own.csv"
    write_csv(path, ("note", "arch"), [{"note": "x", "arch": arch} for arch in [*archs, archs[3]]])
    assert listed_cells(path, NAS).cells == tuple(Cell(number, arch) for number, arch in enumerate(archs, start=1))
    # As spreadsheets write it; but not cut off.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(listed_cells(path, NAS).cells) == 30
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TenasError, match=r"own\.csv is cut off: .* Complete it, or end its last line\."):
        listed_cells(path, NAS)
    write_csv(path, ("arch",), [{"arch": arch} for arch in archs])
    limits = limits_of(NAS, 0.3)
    kept = [arch for arch in archs if limits.fits(NAS.parse(arch))]
    assert 0 < len(kept) < 30
    assert [cell.arch for cell in listed_cells(path, NAS, limits).cells] == kept
    ((sums, _),) = limits.sums.values()
    with pytest.raises(TenasError, match=r"own\.csv has no cell within the limits"):
        listed_cells(path, NAS, Limits(NAS, {"parameters": (sums, -1.0)}))
    path.write_text("arch\n|conv~0|\n")
    with pytest.raises(TenasError, match=r"own\.csv, line 2: 'conv' is no operator of nas-bench-201|own\.csv, line 2"):
        listed_cells(path, NAS)


def test_the_cells_of_a_round(tmp_path):
    """Drawn from the mask before it, by (seed, round); listed in a file; or those that the round before has kept."""
    own = tmp_path / "own.csv"
    archs = [cell.arch for cell in sample_cells(NAS.full_mask(), 5, 9).cells]
    write_csv(own, ("arch",), [{"arch": arch} for arch in archs])
    mask = NAS.full_mask(["none"])
    write_json(tmp_path / "mask.json", mask.to_json())
    shortlist = [Cell(7, archs[2]), Cell(1, archs[0])]
    write_json(tmp_path / "shortlist.json", shortlist_json(NAS, shortlist))

    def drawn(sample: object, seed: int = 4) -> tuple[Cell, ...]:
        rounds = [{"kind": "cells", "sample": sample, "keep": 2}, {"kind": "cells", "keep": 1}]
        resolved = search_settings("nas-bench-201", "pruning", {"rounds": rounds})
        assert cells_of_round(resolved, 2, seed, tmp_path / "shortlist.json").cells == tuple(shortlist)
        return cells_of_round(resolved, 1, seed, tmp_path / "mask.json").cells

    assert drawn(12) == sample_cells(mask, 12, derive_seed(4, 1, "sample")).cells
    assert drawn(12, 5) == sample_cells(mask, 12, derive_seed(5, 1, "sample")).cells != drawn(12)
    assert len(drawn("all")) == 4**6
    assert [cell.arch for cell in drawn(str(own))] == archs


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"space": "darts", "cells": []}, "is of the space 'darts', not nas-bench-201"),
        ({"space": "nas-bench-201", "cells": []}, "has no cell, or one of them twice"),
        ({"space": "nas-bench-201", "cells": [{"number": 1}]}, "lists something other than cells"),
        ({"space": "nas-bench-201", "cells": 5}, "lists something other than cells"),
        ({"space": "nas-bench-201"}, "lists something other than cells"),
        ({"space": "nas-bench-201", "cells": [{"number": "x", "arch": "y"}]}, "lists something other than cells|form"),
    ],
)
def test_a_damaged_shortlist_is_refused_with_a_sentence(tmp_path, value, message):
    write_json(tmp_path / "shortlist.json", value)
    with pytest.raises(TenasError, match=message):
        read_shortlist(tmp_path / "shortlist.json", NAS)
