"""Limits on the network that is trained: what a mask can reach, against all cells of small spaces; pruning within them."""

import itertools
import json
import random
from functools import cache

import numpy as np
import pytest
from helpers import SHARED
from helpers.engine import (
    DARTS,
    KAPPA,
    NAS,
    OPERATORS,
    REGIONS,
    chain_space,
    kept_space,
    random_mask,
    random_values,
    small,
    spanned,
    with_edges_pruned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas.benchmark import read_column
from tenas.errors import TenasError
from tenas.files import write_json
from tenas.provenance import sealed
from tenas.scoring.subjects import Trials
from tenas.search.budget import resolved_limits
from tenas.search.given import given_limits
from tenas.search.limits import Limits, amount, from_json, read_limits, resolve
from tenas.search.prune import pruned, pruned_within, rank_round
from tenas.search.sample import sample_cells
from tenas.settings import schedule, search_settings
from tenas.settings.search import check_settings
from tenas.spaces import CellSpace, Mask, Space
from tenas.spaces.sums import Sums

SEEDS = st.integers(0, 2**31)
SPACES = [
    CellSpace("three", dict(list(OPERATORS.items())[1:]), nodes=3),
    CellSpace("sparse", OPERATORS, nodes=4, edges=[(1, 0), (2, 1), (3, 0), (3, 2)]),
    kept_space(nodes=5, kept=2, operators=2, cell_types=["normal"]),
    kept_space(nodes=4, kept=1, operators=2),
    chain_space(4),
]


def random_sums(space: Space, generator: np.random.Generator, most: int = 20) -> Sums:
    """Costs of operators as whole numbers, with ties and zeros."""
    shape = (len(space.cell_types), len(space.edges), len(space.operators))
    costs = generator.integers(0, most, shape)
    return Sums(space, int(generator.integers(0, 50)), tuple(tuple(tuple(map(int, row)) for row in rows) for rows in costs))


def any_mask(space: Space, generator: np.random.Generator) -> Mask:
    mask = random_mask(space, generator, share=float(generator.random()))
    return with_edges_pruned(mask, generator) if generator.random() < 0.3 else mask


@cache
def places(space: Space, arch: str) -> list[tuple[int, int, int]]:
    """Where a cell's choices stand in a table of costs."""
    return [
        (number, space.edges.index((target, source)), space.operators.index(operator))
        for number, choices in enumerate(space.parse(arch).cells)
        for target, source, operator in choices
    ]


def by_hand(sums: Sums, arch: str) -> int:
    """A cell's figure, added up from its choices."""
    return sums.base + sum(sums.operators[cell][edge][operator] for cell, edge, operator in places(sums.space, arch))


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.name}-{space.nodes}")
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_extremes_of_a_mask_are_those_of_its_cells(space, seed):
    generator = np.random.default_rng(seed)
    sums, mask = random_sums(space, generator), any_mask(space, generator)
    figures = [by_hand(sums, arch) for arch in spanned(mask)]
    assert sums.extreme(mask) == min(figures)
    assert sums.extreme(mask, largest=True) == max(figures)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.name}-{space.nodes}")
@pytest.mark.parametrize("figures", ["one", "two", "table", pytest.param("table and one", marks=pytest.mark.long)])
@given(seed=SEEDS)
@settings(max_examples=12, deadline=None)
@pytest.mark.slow
def test_what_is_reachable_is_what_some_cell_fits(space, figures, seed):
    """Against all cells that the mask spans, for limits near the smallest, where it is close."""
    generator = np.random.default_rng(seed)
    mask, cells = any_mask(space, generator), sorted(spanned(space.full_mask()))
    sums = {name: random_sums(space, generator) for name in ("parameters", "flops")[: 2 if figures == "two" else 1]}
    # A table that lacks some cells, each figure drawn: no sum tells it.
    table = {arch: float(generator.integers(0, 100)) for arch in cells if generator.random() < 0.9}
    here = spanned(mask)
    for quantile in (0.0, 0.02, 0.2, 0.9):
        limited = {}
        if figures != "table":
            limited = {name: (s, float(np.quantile([by_hand(s, arch) for arch in here], quantile))) for name, s in sums.items()}
        known = [table[arch] for arch in here if arch in table] or [0.0]
        most = float(np.quantile(known, quantile))
        limits = Limits(space, limited, table, most) if "table" in figures else Limits(space, limited)

        def fits(arch):
            within = all(by_hand(s, arch) <= most for s, most in limited.values())  # noqa: B023
            return within and ("table" not in figures or (arch in table and table[arch] <= most))

        assert limits.reachable(mask) == any(map(fits, here))
        assert {arch for arch in cells if limits.fits(space.parse(arch))} == set(filter(fits, cells))


def test_two_figures_of_which_each_alone_could_be_met():
    """One operator is small in one figure and one in the other: the smallest of each is not one cell's."""
    space = CellSpace("pair", {"a": OPERATORS["conv1"], "b": OPERATORS["conv3"]}, nodes=2)
    first, second = Sums(space, 0, (((1, 5),),)), Sums(space, 0, (((5, 1),),))
    limits = Limits(space, {"parameters": (first, 3), "flops": (second, 3)})
    mask = space.full_mask()
    assert first.extreme(mask) <= 3
    assert second.extreme(mask) <= 3
    assert not limits.reachable(mask)
    assert Limits(space, {"parameters": (first, 3), "flops": (second, 5)}).reachable(mask)


def test_figures_of_a_cell_are_told():
    space = SPACES[0]
    sums = random_sums(space, np.random.default_rng(0))
    arch = min(spanned(space.full_mask()))
    genotype = space.parse(arch)
    assert Limits(space, {"flops": (sums, 1.0)}).figures(genotype) == {"flops": by_hand(sums, arch)}
    assert Limits(space, {}, {arch: 2.5}, 3.0).figures(genotype) == {"latency": 2.5}
    assert Limits(space, {}, {}, 3.0).figures(genotype) == {"latency": None}


# --- pruning within limits


def decision(trials: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(trials)[None] + 1.0, generator.integers(1, 6, (1, trials)).astype(float)]


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_loose_limits_change_no_decision(seed):
    subjects = Trials(NAS.full_mask(), NAS.rounds()[0])
    trials = subjects.trials[1:]
    ranks, rivals = decision(len(trials), seed), NAS.rivals(trials, subjects.round)
    sums = random_sums(NAS, np.random.default_rng(seed))
    loose = Limits(NAS, {"flops": (sums, sums.extreme(subjects.mask, largest=True))})
    for aggregate in ("rank_sum", "log_rank_sum"):
        within = pruned_within(ranks, rivals, aggregate, trials, subjects.mask, loose)
        np.testing.assert_array_equal(within, pruned(ranks, rivals, aggregate))


@pytest.mark.parametrize(
    ("space", "prune"), [(NAS, 1), (NAS, 3), (kept_space(), 1), (kept_space(nodes=6), 2), (chain_space(4), 1)]
)
@pytest.mark.parametrize("figures", ["one", "two", "table"])
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_every_round_within_limits_prunes_its_quota_and_stays_reachable(space, prune, figures, seed):
    """A whole schedule of rounds, edges too: no mask loses the last fitting cell, and the end is one."""
    generator = np.random.default_rng(seed)
    mask = space.full_mask()
    names = ("parameters", "flops") if figures == "two" else ("parameters",)
    sums = {name: random_sums(space, generator) for name in names}
    # What some cell has is as tight as limits can be.
    tight = space.random_genotype(mask, generator)
    limits = Limits(space, {name: (s, s.of(tight)) for name, s in sums.items()})
    if figures == "table":
        drawn = sample_cells(mask, 40, seed).cells
        limits = Limits(space, {}, {cell.arch: float(generator.integers(5, 50)) for cell in drawn} | {tight.arch: 3.0}, 4.0)
    assert limits.reachable(mask)
    for round in space.rounds((), prune):
        trials = space.trials(mask, round)
        rivals = space.rivals(trials, round)
        (gone,) = pruned_within(decision(len(trials), seed), rivals, "rank_sum", trials, mask, limits)
        assert all(gone[group].sum() == quota for group, quota in rivals)
        mask = mask.without(trial for trial, go in zip(trials, gone, strict=True) if go)
        assert limits.reachable(mask)
    assert limits.fits(space.genotype(mask))


@pytest.mark.parametrize("order", ["together", "edge_by_edge"])
@pytest.mark.parametrize("limit", [{"parameters": 0.4e6}, {"flops": "30%"}, {"parameters": "60%", "flops": 60e6}])
def test_a_whole_search_within_limits_ends_in_a_cell_that_fits(order, limit):
    """Random scores, many seeds, the rounds of a preset."""
    measures = {KAPPA: {"repeats": 1}, REGIONS: {"repeats": 1}}
    resolved = search_settings("nas-bench-201", "released", {"measures": measures, "order": order}, limits=limit)
    limits = from_json(resolved_limits(resolved, classes=10, side=32))
    ended, free = set(), 0
    for seed in range(4 if order == "together" else 2):
        masks = []
        for allowed in (limits, None):
            mask = NAS.full_mask(resolved["exclude"])
            for round, entry in zip(schedule(resolved), resolved["rounds"], strict=True):
                subjects = Trials(mask, round)
                values = random_values(entry["measures"], subjects, seed * 100 + round.number)
                _, rows, mask = rank_round(entry, subjects, values, allowed)
                assert sum(row["pruned"] for row in rows) == sum(quota for _, quota in NAS.rivals(subjects.trials[1:], round))
            masks.append(NAS.genotype(mask))
        assert limits.fits(masks[0])
        ended.add(masks[0].arch)
        free += limits.fits(masks[1])
    assert len(ended) > 1
    assert free < 4  # without limits some of them do not fit: the limits are no empty ones


def test_shares_of_resampled_decisions_are_within_limits_too():
    """The share is of decisions that could have been taken: an operator that the limits keep is never pruned."""
    resolved = search_settings("nas-bench-201", "pruning", limits={"parameters": 80_000})
    limits = from_json(resolved_limits(resolved, classes=10, side=32))
    entry = small(repeats=5)
    subjects = Trials(NAS.full_mask(["none", "skip_connect"]), NAS.rounds(["none", "skip_connect"])[0])
    _, rows, after = rank_round(entry, subjects, random_values(entry["measures"], subjects, 0), limits)
    for edge in range(6):
        rivals = [row for row in rows if row["edge"] == edge]
        assert sum(row["pruned_share"] for row in rivals) == pytest.approx(1)
    assert limits.reachable(after)


# --- limits as a run gives them


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5.0), (0.5e6, 5e5), ("60%", 600.0), ("100 %", 1000.0), ("12.5%", 125.0), ("700", 700.0)],
)
def test_a_limit_is_a_number_or_a_share_of_the_largest(value, expected):
    assert amount(value, 1000, "flops") == expected


@pytest.mark.parametrize(
    "value", ["0%", "101%", "-5%", "much", "%", -1, 0, "0", "nan", "nan%", "inf", "", "60 per cent", float("nan")]
)
def test_a_limit_that_is_none_is_refused_with_a_sentence(value):
    with pytest.raises(TenasError, match="limit 'flops' is"):
        amount(value, 1000, "flops")


def run_limits(space: str = "nas-bench-201", classes: int = 10, side: int = 32, **limits: object) -> dict:
    return resolved_limits(search_settings(space, "pruning", limits=limits), classes=classes, side=side)


def test_limits_are_about_the_network_that_is_trained():
    """The search network has 3 channels and a cell in each stage; 60 % are of the largest with 16 channels and 5."""
    found = run_limits(flops="60%")
    assert found["sums"]["flops"]["largest"] == 220_119_690
    assert found["sums"]["flops"]["most"] == pytest.approx(0.6 * 220_119_690)
    assert found["network"] == {"channels": 16, "cells": 5, "stem": None, "classes": 10, "side": 32}
    # The retraining of the run says otherwise: its own channels, and its own side.
    shape = {"channels": 8, "cells": 2, "stem": "cifar", "side": 16}
    resolved = search_settings("nas-bench-201", "pruning", retraining=shape, limits={"flops": "60%"})
    other = resolved_limits(resolved, classes=100, side=32)
    assert other["network"] == {"channels": 8, "cells": 2, "stem": "cifar", "classes": 100, "side": 16}
    assert other["sums"]["flops"]["largest"] < 220_119_690 / 20


def test_an_excluded_operator_is_no_part_of_the_largest_cell():
    resolved = search_settings("nas-bench-201", "pruning", {"exclude": ["none", "nor_conv_3x3"]}, limits={"flops": "50%"})
    found = resolved_limits(resolved, classes=10, side=32)
    without = spanned(NAS.full_mask(["none", "nor_conv_3x3"]))
    sums = from_json(found).sums["flops"][0]
    assert found["sums"]["flops"]["largest"] == max(sums.of(NAS.parse(arch)) for arch in without)


def test_a_limit_that_nothing_can_meet_names_the_smallest():
    with pytest.raises(TenasError, match=r"No cell of nas-bench-201 has at most 1,000 parameters: the smallest has 73,306, the "):
        run_limits(parameters=1000)
    with pytest.raises(TenasError, match=r"No cell of nas-bench-201 has at most 2,201,197 multiply-adds: the smallest has 7,"):
        run_limits(flops="1%")


def test_limits_that_can_each_be_met_but_not_both():
    """In sums both are smallest together on NAS-Bench-201, so the second is a table in which only large cells are fast."""
    sums = {"parameters": random_sums(NAS, np.random.default_rng(0))}
    mask = NAS.full_mask()
    smallest, largest = (min(s, key=sums["parameters"].of) for s in itertools.tee(NAS.genotypes(mask)))
    largest = max(NAS.genotypes(mask), key=sums["parameters"].of)
    table = {smallest.arch: 9.0, largest.arch: 1.0}
    limits = {"parameters": sums["parameters"].of(smallest), "latency": {"table": "t.csv", "column": "ms", "most": 5.0}}
    with pytest.raises(TenasError, match="is within all limits at once \\(latency, parameters\\), though each alone can be met"):
        resolve(NAS, [], limits, sums, table)
    found = resolve(NAS, [], limits | {"latency": {"table": "t.csv", "column": "ms", "most": 9.0}}, sums, table)
    assert from_json(found).fits(smallest)


def test_latencies_of_a_table_of_ones_own(tmp_path):
    archs = sorted(spanned(NAS.full_mask(["none"])))[:200]
    rows = [
        "arch,ms",
        *(f"{arch},{3 + number / 10}" for number, arch in enumerate(archs)),
        f"{archs[0].replace('skip', 'skip')},",
    ]
    (tmp_path / "ms.csv").write_text("\n".join(rows[:-1]) + "\n")
    latency = {"table": str(tmp_path / "ms.csv"), "column": "ms", "most": 5.0}
    found = run_limits(latency=latency)
    limits = from_json(found)
    assert {arch for arch in spanned(NAS.full_mask()) if limits.fits(NAS.parse(arch))} == set(archs[:21])
    share = from_json(run_limits(latency=latency | {"most": "50%"}))
    assert share.most == pytest.approx((3 + 19.9) / 2)
    with pytest.raises(TenasError, match="No cell of nas-bench-201 has at most 1 of ms: the smallest has 3"):
        run_limits(latency=latency | {"most": 1})
    with pytest.raises(TenasError, match="'seconds'"):
        run_limits(latency=latency | {"column": "seconds"})


@pytest.mark.data
@pytest.mark.slow
def test_real_latencies_of_an_edge_gpu():
    """HW-NAS-Bench's edge GPU, at most 5 ms: random searches by pruning and samples of cells all fit, by the table itself."""
    table = SHARED / "nb201_hardware_cifar10.csv.gz"
    known = read_column(table, "edgegpu_latency_ms", NAS)
    limits = from_json(run_limits(latency={"table": str(table), "column": "edgegpu_latency_ms", "most": 5.0}))
    entry, rounds = small(repeats=1), NAS.rounds(["none"])
    for seed in range(3):
        mask = NAS.full_mask(["none"])
        for round in rounds:
            subjects = Trials(mask, round)
            _, _, mask = rank_round(entry, subjects, random_values(entry["measures"], subjects, seed), limits)
            assert limits.reachable(mask)
        assert known[NAS.genotype(mask).arch] <= 5.0
    # Fewer fit than are asked for: it is all of them.
    cells = sample_cells(NAS.full_mask(["none"]), 300, 0, limits)
    assert {cell.arch for cell in cells.cells} == {arch for arch in known if known[arch] <= 5.0 and "none" not in arch}
    assert len(cells.cells) == 247
    with pytest.raises(TenasError, match=r"has at most 0\.01 of edgegpu_latency_ms: the smallest has"):
        run_limits(latency={"table": str(table), "column": "edgegpu_latency_ms", "most": 0.01})


def test_limits_survive_their_file(tmp_path):
    found = run_limits(parameters=0.4e6, flops="50%")
    write_json(tmp_path / "limits.json", found)
    limits = read_limits(tmp_path / "limits.json")
    assert limits == from_json(found)
    assert read_limits(None) is None
    damages = (
        lambda v: v.pop("sums"),
        lambda v: v["sums"]["flops"].pop("most"),
        lambda v: v.update(latency=3),
        lambda v: v["sums"]["flops"].update(most=[1]),
        lambda v: v["sums"]["flops"].update(base=None),
        lambda v: v["sums"]["flops"]["operators"][0][0].pop(),
        lambda v: v["sums"]["flops"]["operators"][0].pop(),
        lambda v: v["sums"]["flops"]["operators"][0][0].__setitem__(0, True),
        lambda v: v.update(latency={"values": {"a": "1"}, "most": 1}),
    )
    for damage in damages:
        value = json.loads(json.dumps(found))
        damage(value)
        write_json(tmp_path / "limits.json", value)
        with pytest.raises(TenasError, match=r"limits\.json are damaged"):
            read_limits(tmp_path / "limits.json")


def test_limits_that_were_edited_are_refused_by_their_own_hash(tmp_path):
    value = sealed(run_limits(parameters=0.4e6))
    write_json(tmp_path / "limits.json", value)
    assert read_limits(tmp_path / "limits.json") == from_json(value)
    value["sums"]["parameters"]["most"] += 1
    write_json(tmp_path / "limits.json", value)
    with pytest.raises(TenasError, match=r"limits\.json is not what was written: its own hash differs"):
        read_limits(tmp_path / "limits.json")


def test_limits_of_the_command_line():
    assert given_limits(["parameters=0.5e6", "flops=60%", "latency=some:where/a.csv:ms:5.0"]) == {
        "parameters": 500_000.0, "flops": "60%", "latency": {"table": "some:where/a.csv", "column": "ms", "most": 5.0},
    }  # fmt: skip
    assert given_limits(["latency=a.csv:ms:60%"])["latency"]["most"] == "60%"
    for text in ("parameters", "latency=a.csv:5"):
        with pytest.raises(TenasError, match=r"KEY=VALUE|latency=FILE:COLUMN:MOST"):
            given_limits([text])
    with pytest.raises(TenasError, match="The limit parameters has no value: an unset variable, perhaps"):
        given_limits(["parameters="])


@pytest.mark.slow
def test_limits_of_settings_are_kept_as_they_are_given():
    resolved = search_settings("darts", "released", limits={"parameters": 3.5e6})
    assert resolved["limits"] == {"parameters": 3.5e6}
    assert resolved["network"] == {"channels": 36, "cells": 20, "stem": None, "side": None}
    assert check_settings(resolved, "search") == resolved
    found = resolved_limits(resolved, classes=10, side=32)
    generator = random.Random(0)
    tight = found["sums"]["parameters"]["smallest"] + 50_000
    limits = Limits(DARTS, {"parameters": (from_json(found).sums["parameters"][0], tight)})
    mask = DARTS.full_mask(["none"])
    for seed, round in enumerate(DARTS.rounds(["none"], 3)):
        trials = DARTS.trials(mask, round)
        ranks = decision(len(trials), seed + generator.randint(0, 9))
        (gone,) = pruned_within(ranks, DARTS.rivals(trials, round), "rank_sum", trials, mask, limits)
        mask = mask.without(trial for trial, go in zip(trials, gone, strict=True) if go)
    assert limits.fits(DARTS.genotype(mask))
