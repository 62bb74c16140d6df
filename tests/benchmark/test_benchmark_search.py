"""Searches on a table: what each may look at, what it finds where the answer is known, and figures of others."""

import csv
import json
import re
from statistics import mean

import numpy as np
import pandas as pd
import pytest

from tenas.benchmark import read_index
from tenas.benchmark.searches import (
    COLUMNS,
    METHODS,
    POPULATION,
    Landscape,
    local_search,
    neighbours,
    random_search,
    regularised_evolution,
    search_table,
    training_seconds,
)
from tenas.cli import main
from tenas.errors import TenasError
from tenas.spaces import get_space

ARCHS = [genotype.arch for genotype in get_space("nas-bench-201").genotypes()]


def operators(arch: str) -> list[str]:
    return re.findall(r"(\w+)~\d", arch)


@pytest.fixture(scope="module")
def shuffled() -> pd.DataFrame:
    """All cells in another order than the space's, with an accuracy that is a sum over edges: one optimum and no other."""
    generator = np.random.default_rng(3)
    worth = [dict(zip(get_space("nas-bench-201").operators, generator.permutation(5), strict=True)) for _ in range(6)]
    archs = [ARCHS[i] for i in generator.permutation(len(ARCHS))]
    valid = [
        10.0 + sum(edge[op] * 1.5**i for i, (edge, op) in enumerate(zip(worth, operators(arch), strict=True))) for arch in archs
    ]
    table = pd.DataFrame({"arch": archs, "cifar10_valid": valid})
    table["cifar10_test"] = table["cifar10_valid"] + generator.normal(size=len(archs))
    table["cifar10_train_seconds"] = generator.uniform(100, 200, len(archs)).round(2)
    return table


@pytest.fixture(scope="module")
def landscape(shuffled) -> Landscape:
    return Landscape(shuffled["cifar10_valid"].tolist(), neighbours(list(shuffled["arch"])).tolist())


def test_neighbours_differ_in_one_edge(shuffled, landscape):
    archs = list(shuffled["arch"])
    for place in (0, 1, 5000, 15_624):
        found = [sum(a != b for a, b in zip(operators(archs[place]), operators(arch), strict=True)) for arch in archs]
        assert sorted(landscape.neighbours[place]) == [other for other, edges in enumerate(found) if edges == 1]
        assert len(landscape.neighbours[place]) == 24


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_search_looks_at_so_many_cells_and_a_shorter_one_is_its_beginning(landscape, method):
    long = method(landscape, 7, 400)
    assert len(set(long)) == len(long) == 400
    for budget in (1, 9, 10, 11, 54):
        assert method(landscape, 7, budget) == long[:budget]
    assert method(landscape, 8, 400) != long


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_budget_of_all_cells_looks_at_all_cells(landscape, method):
    assert sorted(method(landscape, 0, len(ARCHS))) == list(range(len(ARCHS)))


def test_random_search_draws_uniformly(landscape):
    """The best of k cells of n, drawn without replacement, has the rank (n + 1) / (k + 1) in the mean."""
    order = np.argsort(np.argsort([-value for value in np.random.default_rng(0).random(len(ARCHS))]))
    best = [min(order[random_search(landscape, seed, 54)]) + 1 for seed in range(400)]
    expected = (len(ARCHS) + 1) / 55
    assert abs(mean(best) - expected) < 4 * np.std(best) / 20


def test_evolution_mutates_its_population(landscape):
    looked = regularised_evolution(landscape, 1, 300)
    for place, cell in enumerate(looked[POPULATION:], start=POPULATION):
        parents = looked[place - POPULATION : place]
        # A child that is known is mutated on, over cells that have been looked at.
        reached = set(parents)
        known = set(looked[:place])
        while cell not in (around := {n for other in reached for n in landscape.neighbours[other]}):
            assert (around & known) - reached
            reached |= around & known
    # The better of three parents: the population gets better, and better than drawing at random.
    values = [landscape.valid[cell] for cell in looked]
    assert mean(values[-50:]) > mean(landscape.valid) + np.std(landscape.valid)
    found = {method: mean(max(landscape.valid[c] for c in method(landscape, seed, 100)) for seed in range(20))
             for method in (random_search, regularised_evolution, local_search)}  # fmt: skip
    assert min(found[regularised_evolution], found[local_search]) > found[random_search] + 0.25 * np.std(landscape.valid)


def test_local_search_climbs_by_the_best_step(landscape):
    optimum = int(np.argmax(landscape.valid))
    for seed in range(20):
        # Every step puts one of six edges right.
        assert optimum in local_search(landscape, seed, 1 + 24 * 6)
    looked = local_search(landscape, 5, 15_000)
    here, seen = looked[0], 1
    while True:
        around = [cell for cell in landscape.neighbours[here] if cell not in looked[:seen]]
        assert set(looked[seen : seen + len(around)]) == set(around)
        seen += len(around)
        best = max(landscape.neighbours[here], key=landscape.valid.__getitem__)
        if landscape.valid[best] <= landscape.valid[here]:
            break
        here = best
    assert here == optimum
    # And then from another cell: the next is none of its neighbours.
    assert looked[seen] not in landscape.neighbours[here]


def test_rows_say_what_was_chosen_and_what_it_would_have_cost(shuffled, landscape):
    rows = search_table(shuffled, datasets=["cifar10"], budgets=[1, 20], searches=3)
    assert [tuple(row) for row in rows] == [COLUMNS] * len(rows)
    assert len(rows) == 3 * 2 * 3
    worth = shuffled.set_index("arch")
    for row in rows:
        known = worth.loc[row["arch"]]
        assert (row["valid_accuracy"], row["test_accuracy"]) == (known["cifar10_valid"], known["cifar10_test"])
        assert row["regret"] == pytest.approx(worth["cifar10_test"].max() - row["test_accuracy"], abs=1e-6)
        # Half of the images, half of the time.
        assert 50 * row["budget"] <= row["train_seconds"] <= 100 * row["budget"]
        if row["budget"] == 1:
            assert row["train_seconds"] == pytest.approx(known["cifar10_train_seconds"] / 2, abs=1e-3)
    for one, more in zip(rows[::2], rows[1::2], strict=True):
        assert one["valid_accuracy"] <= more["valid_accuracy"]
    # The order of the table's rows must not matter for what a seed draws from it, nor which data sets are asked for.
    assert search_table(shuffled.drop(columns="cifar10_train_seconds"), datasets=["cifar10"], budgets=[1], searches=1)[0] == {
        **rows[0],
        "train_seconds": None,
    }
    half = shuffled.assign(cifar10_halftrain_seconds=1.0)
    assert search_table(half, datasets=["cifar10"], budgets=[20], searches=1)[0]["train_seconds"] == 20


def test_what_cannot_be_searched_gets_a_sentence(shuffled):
    for table, settings, sentence in (
        (shuffled.iloc[1:], {}, r"needs a table of all 15,625 cells of nas-bench-201; this one has 15,624\."),
        (shuffled, {"datasets": ["cifar100"]}, "the accuracy 'cifar100_valid' of every cell"),
        (shuffled.assign(cifar10_test=np.nan), {}, "the accuracy 'cifar10_test' of every cell"),
        (shuffled, {"datasets": ["mnist"]}, "Unknown data set of the benchmark 'mnist'; known: cifar10, cifar100, imagenet16"),
        (shuffled, {"methods": ["reinforce"]}, "Unknown method of search 'reinforce'; known: random_search"),
        (shuffled, {"budgets": [54, 54]}, "at least one budget, and each of them once: 54, 54"),
        (shuffled, {"budgets": []}, "at least one budget"),
        (shuffled, {"budgets": [0]}, "A budget of 0 cells is none"),
        (shuffled, {"datasets": ["cifar10", "cifar10"]}, "at least one data set, and each of them once"),
        (shuffled, {"budgets": [1, 20_000]}, "A budget of 20,000 is more than the 15,625 cells there are"),
    ):
        with pytest.raises(TenasError, match=sentence):
            search_table(table, **{"datasets": ["cifar10"], "budgets": [1], "searches": 1} | settings)


def test_a_table_of_searches_and_its_record_have_two_names(tmp_path, capsys):
    assert main(["benchmark", "search", "--searches", "1", "--out", str(tmp_path / "x.json")]) == 2
    assert "x.json would have the name of its record" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_again(tmp_path, shuffled, capsys):
    index = tmp_path / "index.csv"
    shuffled.to_csv(index, index=False)
    command = ["benchmark", "search", "--index", str(index), "--datasets", "cifar10", "--budgets", "1", "30", "--searches", "2"]
    for name in ("one.csv", "two.csv"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    said = capsys.readouterr()
    assert re.search(r"^cifar10 +local_search +30 +\d+\.\d\d \(\d+\.\d\d\)$", said.out, re.MULTILINE)
    assert "search on the table: 6 of 6 searches" in said.err
    rows = list(csv.DictReader((tmp_path / "one.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * 2 * 2
    record = json.loads((tmp_path / "one.json").read_text())
    assert record["settings"] == {
        "datasets": ["cifar10"], "methods": list(METHODS), "budgets": [1, 30], "searches": 2,
    }  # fmt: skip
    assert list(record["inputs"]) == [str(index)]
    assert main([*command, "--datasets", "cifar100", "--out", str(tmp_path / "three.csv")]) == 2
    assert not (tmp_path / "three.csv").exists()
    assert not (tmp_path / "three.json").exists()


def test_a_look_at_cifar10_costs_training_on_half_of_it():
    """The official API says of cell 1, trained on the half for 200 epochs, that an epoch took 10.848206877708435 s."""
    seconds = training_seconds(read_index("builtin"), "cifar10")
    assert seconds[1] == pytest.approx(200 * 10.848206877708435, abs=0.01)


def test_figures_of_the_benchmarks_own_paper_are_met():
    """NAS-Bench-201, table 5: random search 93.70 (0.36) and evolution 93.92 (0.30) on CIFAR-10, 71.04 and 71.84 on CIFAR-100."""
    rows = search_table(read_index("builtin"), budgets=[54, 1000], searches=60)
    found = {}
    for row in rows:
        found.setdefault((row["dataset"], row["method"], row["budget"]), []).append(row)
    means = {key: mean(row["test_accuracy"] for row in group) for key, group in found.items()}
    for dataset in ("cifar10", "cifar100", "imagenet16"):
        assert means[dataset, "regularised_evolution", 54] > means[dataset, "random_search", 54]
        assert means[dataset, "local_search", 1000] > means[dataset, "random_search", 1000]
    # Its budget is a time, 12,000 s, for trainings of 12 epochs: near, not the same.
    assert means["cifar10", "random_search", 54] == pytest.approx(93.70, abs=0.15)
    assert means["cifar10", "regularised_evolution", 54] == pytest.approx(93.92, abs=0.15)
    assert means["cifar100", "random_search", 54] == pytest.approx(71.04, abs=0.4)
    assert means["cifar100", "regularised_evolution", 54] == pytest.approx(71.84, abs=0.4)
    # 54 trainings of 200 epochs on half of CIFAR-10 take days.
    assert 54 * 600 < mean(row["train_seconds"] for row in found["cifar10", "random_search", 54]) < 54 * 4000
