"""What stands beside a search at the same cost: against known figures, and against order statistics of the table."""

from math import comb

import numpy as np
import pytest
from helpers import NAS

from tenas.benchmark.index import read_index
from tenas.networks.costs import operator_costs
from tenas.report.baselines import baselines
from tenas.search.limits import Limits
from tenas.settings import search_settings

TESTS = ["cifar10_test", "cifar100_test", "imagenet16_test"]


def settings(**given: object) -> dict:
    return search_settings("nas-bench-201", "default", **{"trainings": "table:cifar100_valid_e12", **given})


def test_the_most_parameters_and_a_random_cell():
    most, random, *_ = baselines(read_index("builtin"), settings(), searches=2)
    # Six nor_conv_3x3, index 1462 of the benchmark.
    assert {name: round(value, 2) for name, (value, _) in most.accuracies.items()} == dict(
        zip(TESTS, (93.76, 71.11, 41.44), strict=True)
    )
    table = read_index("builtin")
    table = table[~table["arch"].str.contains("none")]
    assert len(table) == 4**6
    for name in TESTS:
        assert random.accuracies[name] == pytest.approx((table[name].mean(), table[name].std(ddof=0)))


def test_the_best_of_sixteen_by_short_trainings_is_an_order_statistic():
    """The k-th best of n cells is the best of 16 drawn with the probability C(n - k, 15) / C(n, 16)."""
    table = read_index("builtin")
    table = table[~table["arch"].str.contains("none")].sort_values("cifar100_valid_e12", ascending=False, kind="stable")
    n = len(table)
    probability = np.array([comb(n - k, 15) / comb(n, 16) for k in range(1, n + 1)])
    assert probability.sum() == pytest.approx(1)
    searches = 400
    found = {part.name: part for part in baselines(read_index("builtin"), settings(), searches=searches)}
    value, spread = found["best of 16 random cells, by the same short trainings"].accuracies["cifar100_test"]
    accuracy = table["cifar100_test"].to_numpy()
    expected = probability @ accuracy
    assert abs(value - expected) < 4 * (probability @ (accuracy - expected) ** 2 / searches) ** 0.5
    assert spread == pytest.approx((probability @ (accuracy - expected) ** 2) ** 0.5, rel=0.3)
    assert len(found) == 4


def test_they_are_among_the_cells_that_the_search_could_have_found():
    sums = operator_costs(NAS, side=32, channels=16, cells=5, classes=10)["parameters"]
    limits = Limits(NAS, {"parameters": (sums, 0.5e6)}, None, 0.0)
    table = read_index("builtin").set_index("arch")
    most, *_ = baselines(read_index("builtin"), settings(), limits, searches=2)
    fitting = [g.arch for g in NAS.genotypes(NAS.full_mask(("none",))) if sums.of(g) <= 0.5e6]
    largest = table.loc[fitting, "params_cifar10"]
    assert most.accuracies["cifar10_test"][0] in set(table.loc[largest[largest == largest.max()].index, "cifar10_test"])
    tight = Limits(NAS, {"parameters": (sums, 80_000)}, None, 0.0)
    assert baselines(read_index("builtin"), settings(), tight, searches=2) == []


def test_without_short_trainings_there_are_none_beside_it():
    assert [part.name for part in baselines(read_index("builtin"), settings(trainings="none"))] == [
        "most parameters",
        "a random cell",
    ]
