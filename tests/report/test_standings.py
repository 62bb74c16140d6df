"""What stands beside a search at the same cost: against known figures, and against order statistics of the table."""

from math import comb
from pathlib import Path

import numpy as np
import pytest
from helpers.engine import NAS

from tenas.benchmark.index import read_index
from tenas.files import write_json
from tenas.networks.costs import operator_costs
from tenas.report.baselines import baselines
from tenas.report.beside import Found, released_beside
from tenas.search.limits import Limits
from tenas.settings import search_settings
from tenas.settings.search import read_settings

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
        "a random cell without none",
    ]


def test_other_searches_are_beside_it_at_the_cost_of_its_trainings():
    table = read_index("builtin")
    archs = table["arch"].sample(20, random_state=1).tolist()
    known = table.set_index("arch")
    without = {one.name: one for one in baselines(table, settings(trainings="none"), others=("run other", archs), searches=2)}
    accuracies = known.loc[archs, "cifar100_test"]
    assert without["run other"].number == 20
    assert without["run other"].accuracies["cifar100_test"] == pytest.approx((accuracies.mean(), accuracies.std()))
    # It has 16 trainings: the last four are not looked at, be they the best of all.
    best = known.loc[archs[:16], "cifar100_valid_e12"].idxmax()
    archs[19] = known["cifar100_valid_e12"].idxmax()
    trained = {one.name: one for one in baselines(table, settings(), others=("run other", archs), searches=2)}
    one = trained["best of 16 seeds of run other, by the same short trainings"]
    assert one.accuracies["cifar100_test"] == (known.loc[best, "cifar100_test"], 0.0)
    assert "run other" not in trained


def save_found(folder: Path, settings: dict, images: str = "a" * 64) -> Found:
    """A run of one seed, with the first record of its measurements."""
    write_json(folder / "search.json", settings)
    write_json(folder / "seed3/round1/scores/1.json", {"inputs": {"mask.json": "m", "data/any/images.npy": images}})
    return Found(folder, read_settings(folder / "search.json"), {3: "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"})


def test_released_searches_are_those_of_the_same_images_with_all_of_the_authors_settings(tmp_path):
    run = save_found(tmp_path / "run", settings())
    released = search_settings("nas-bench-201", "released")
    ablation = search_settings("nas-bench-201", "released", {"measures": {"linear_regions": None}})
    limited = search_settings("nas-bench-201", "released", limits={"parameters": 0.5e6})
    others = [
        save_found(tmp_path / "ablation", ablation),
        save_found(tmp_path / "elsewhere", released, images="b" * 64),
        save_found(tmp_path / "limited", limited),
        save_found(tmp_path / "pruning", search_settings("nas-bench-201", "pruning")),
    ]
    assert released_beside(run, others) is None
    found = save_found(tmp_path / "same", released)
    assert released_beside(run, [*others, found]) == found
    assert released_beside(found, [found]) is None
    (tmp_path / "run/seed3/round1/scores/1.json").unlink()
    assert released_beside(run, [*others, found]) is None
