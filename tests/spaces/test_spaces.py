"""The search spaces: what can be chosen, and its texts."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import SHARED
from helpers.engine import DARTS, NAS, OPERATORS, chain_space, kept_space, random_mask, with_edges_pruned
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas.errors import TenasError
from tenas.spaces import SPACES, CellSpace, Edge, Trial, get_space, load_genotype
from tenas.spaces.base import after, operators_left

BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def test_edges_are_in_the_benchmarks_order():
    assert NAS.edges == (Edge(1, 0), Edge(2, 0), Edge(2, 1), Edge(3, 0), Edge(3, 1), Edge(3, 2))


def test_all_cells_round_trip_through_their_text():
    archs = [genotype.arch for genotype in NAS.genotypes()]
    assert len(archs) == len(set(archs)) == 15_625
    assert all(NAS.parse(arch).arch == arch for arch in archs)


@pytest.mark.data
def test_the_cells_are_those_of_the_benchmark():
    table = pd.read_csv(SHARED / "nb201.csv.gz", usecols=["arch"])
    assert {genotype.arch for genotype in NAS.genotypes()} == set(table.arch)


def test_genotype_and_mask_are_each_others_inverse():
    genotype = NAS.parse(BEST)
    assert NAS.genotype(NAS.mask(genotype)) == genotype
    assert [choice.operator for choice in genotype.cells[0]] == [
        "nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", "skip_connect", "nor_conv_3x3", "nor_conv_3x3"
    ]  # fmt: skip


@pytest.mark.parametrize(("exclude", "trials"), [([], [30, 24, 18, 12]), (["none"], [24, 18, 12])])
def test_the_schedule_of_rounds(exclude, trials):
    rounds = NAS.rounds(exclude)
    assert [round.trials for round in rounds] == trials
    mask = NAS.full_mask(exclude)
    for round in rounds:
        candidates = NAS.trials(mask, round)
        assert len(candidates) == round.trials
        groups = NAS.rivals(candidates, round)
        assert sorted(index for group, _ in groups for index in group) == list(range(round.trials))
        mask = mask.without(candidates[index] for group, quota in groups for index in group[:quota])
    assert NAS.genotype(mask)


def test_pruning_several_operators_a_round_keeps_the_last_one():
    assert [(round.trials, round.prune) for round in NAS.rounds((), prune=3)] == [(30, 3), (12, 1)]


def test_a_mask_survives_its_file(tmp_path):
    mask = NAS.full_mask(["none"]).without([Trial("cell", 2, "nor_conv_1x1")])
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(mask.to_json()))
    assert NAS.read_mask(path) == mask
    assert mask.operators("cell", 2) == ("skip_connect", "nor_conv_3x3", "avg_pool_3x3")


def edited(change) -> str:
    value = NAS.full_mask().to_json()
    change(value)
    return json.dumps(value)


def empty_an_edge(value: dict) -> None:
    value["active"]["cell"][4] = [False] * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited(empty_an_edge), "no operator on edge 3<-1"),
        (edited(lambda value: value.update(space="darts")), "of the space 'darts', not nas-bench-201"),
        (edited(lambda value: value["operators"].reverse()), "other operators"),
        (edited(lambda value: value.pop("active")), "lacks rows of booleans"),
        (edited(lambda value: value["active"]["cell"].pop()), "1 x 6 x 5 booleans"),
        (edited(lambda value: value["active"]["cell"][0].append(True)), "1 x 6 x 5 booleans"),
        (edited(lambda value: value["active"]["cell"][0].__setitem__(0, 1)), "something other than booleans"),
        (edited(lambda value: None)[:-20], "not valid JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_damaged_mask_is_refused_with_a_sentence(tmp_path, text, message):
    path = tmp_path / "mask.json"
    path.write_text(text)
    with pytest.raises(TenasError, match=message) as error:
        NAS.read_mask(path)
    assert str(path) in str(error.value)


def test_a_missing_mask_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(TenasError, match="cannot be read"):
        NAS.read_mask(tmp_path / "mask.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the form"),
        ("nonsense", "expected the form"),
        (BEST.replace("~2", "~" + "2" * 5000), "expected the form"),
        ("|nor_conv_3x3~0|", "has 1 operators"),
        (BEST.replace("skip_connect", "sep_conv_3x3"), "'sep_conv_3x3' is no operator of nas-bench-201"),
        (BEST.replace("skip_connect~0", "skip_connect~7"), "no edge 3<-7"),
        (BEST.replace("skip_connect~0", "skip_connect~1"), "Edge 3<-1 is given twice"),
        (BEST + "+|none~0|none~1|none~2|none~3|", "no edge 4<-0"),
    ],
)
def test_a_text_that_is_no_cell_is_refused_with_a_sentence(text, message):
    with pytest.raises(TenasError, match=message):
        NAS.parse(text)


def test_load_genotype_takes_an_object_a_file_or_a_text(tmp_path):
    genotype = NAS.parse(BEST)
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(genotype.to_json()))
    assert load_genotype(genotype) == load_genotype(path) == load_genotype(str(path)) == load_genotype(BEST) == genotype
    path.write_text('{"space": "nas-bench-201"}')
    with pytest.raises(TenasError, match="no key 'arch'"):
        load_genotype(path)
    path.write_text('{"space": "nowhere", "arch": ""}')
    with pytest.raises(TenasError, match="Unknown space 'nowhere'; known: nas-bench-201"):
        load_genotype(path)


def test_an_unknown_space_or_operator_is_refused_with_the_known_ones():
    with pytest.raises(TenasError, match=f"Unknown space 'nas'; known: {', '.join(SPACES)}"):
        get_space("nas")
    with pytest.raises(TenasError, match="Unknown operator of nas-bench-201 'conv'; known: none, skip_connect"):
        NAS.full_mask(["conv"])


# --- what holds for every space

EVERY = [
    NAS,
    DARTS,
    chain_space(4),  # its third layer has two operators to choose from, the others three
    kept_space(),
    CellSpace("sparse", OPERATORS, nodes=4, edges=[(1, 0), (2, 1), (3, 0), (3, 2)]),
]
every = pytest.mark.parametrize("space", EVERY, ids=lambda space: space.name)


@every
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_genotypes_and_masks_survive_their_texts_and_files(space, seed, tmp_path_factory):
    generator = np.random.default_rng(seed)
    genotype = space.random_genotype(space.full_mask(), generator)
    assert space.parse(genotype.arch) == genotype
    assert space.genotype(space.mask(genotype)) == genotype
    assert load_genotype(genotype.arch, space) == genotype
    path = tmp_path_factory.mktemp("files") / "mask.json"
    for mask in (random_mask(space, generator), with_edges_pruned(space.full_mask(), generator), space.mask(genotype)):
        path.write_text(json.dumps(mask.to_json()))
        assert space.read_mask(path) == mask
    path.write_text(json.dumps(genotype.to_json()))
    assert load_genotype(path, space) == genotype


@every
@pytest.mark.parametrize("prune", [1, 2, 9])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_a_schedule_knows_its_trials_whatever_is_pruned(space, prune, seed):
    """Edges need not have equally many operators: what is left is known beforehand all the same, and one is what is left."""
    generator = np.random.default_rng(seed)
    mask, left = space.full_mask(), operators_left(space.full_mask())
    rounds = space.rounds((), prune)
    assert [round.number for round in rounds] == list(range(1, len(rounds) + 1))
    for round in rounds:
        trials = space.trials(mask, round)
        assert len(set(trials)) == round.trials == len(trials)
        groups = space.rivals(trials, round)
        assert sorted(index for group, _ in groups for index in group) == list(range(len(trials)))
        assert all(0 < quota < len(group) for group, quota in groups)
        mask = mask.without(trials[i] for group, quota in groups for i in generator.permutation(group)[:quota])
        if round.stage == "operators":
            left = after(left, round)
            assert operators_left(mask) == left
    assert max(left.values()) == 1
    assert space.parse(space.genotype(mask).arch) == space.genotype(mask)


def test_an_edge_with_fewer_operators_is_settled_first():
    """The third layer of the chain has two, the others three: it has no trials in the second round."""
    space = chain_space(4)
    assert [(round.trials, round.prune) for round in space.rounds()] == [(11, 1), (6, 1)]
    assert operators_left(space.full_mask()) == {("chain", 0): 3, ("chain", 1): 3, ("chain", 2): 2, ("chain", 3): 3}
