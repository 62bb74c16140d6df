"""The correlation study: its statistics against plain computations, its stages, and the workflow that runs them."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from helpers.engine import NAS, ON_A_BATCH
from helpers.runs import TINY, snakemake, succeed, write_config
from scipy import stats

from tenas.config import load_config
from tenas.errors import TenasError
from tenas.files import write_csv
from tenas.measures import MEASURES
from tenas.measures.catalogue import get_measure
from tenas.scoring.subjects import Cell, Cells, plan
from tenas.scoring.table import read_scores, score_columns, score_rows
from tenas.settings import study_settings
from tenas.spaces import Genotype, get_space
from tenas.study import correlate
from tenas.study.correlate import KAPPA, RANK_SUM, REGIONS, Scores, correlations, ndcg, oriented, statistics
from tenas.study.report import _together, read_table_of_values
from tenas.study.sample import is_valid, sample_table

SMALL = {key: value for key, value in ON_A_BATCH.items() if key != "inputs"}
# An index of a few cells is enough here.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
STUDY = {
    "space": "nas-bench-201",
    "dataset": "digits",
    "cells": 24,
    "seed": 3,
    "measures": {
        KAPPA: SMALL | {"repeats": 2},
        REGIONS: {k: v for k, v in SMALL.items() if k not in ("batch", "cells")}
        | {"inputs": "crops", "count": 60, "blocks": 3, "channels": 1},
        "parameters": SMALL,
        "snip": SMALL,
        "naswot": SMALL,
    },
}


def settings(**changes) -> dict:
    return study_settings(STUDY | changes, "study")


def write_index(path: Path, count: int = 200) -> Path:
    """An index of some cells, whose accuracies follow from their operators."""
    worth = {"none": 0, "skip_connect": 2, "nor_conv_1x1": 3, "nor_conv_3x3": 4, "avg_pool_3x3": 1}
    generator = np.random.default_rng(0)
    every = list(NAS.genotypes())
    chosen = [every[i] for i in generator.choice(len(every), count, replace=False)]
    rows = []
    for number, genotype in enumerate(chosen):
        accuracy = sum(worth[choice.operator] for choice in genotype.cells[0]) + generator.normal()
        cell = {"index": 1000 + number, "arch": genotype.arch}
        rows.append(cell | {"cifar10_test": 50 + accuracy, "cifar100_test": 50 - accuracy})
    write_csv(path, list(rows[0]), rows)
    return path


# --- statistics


def test_kendall_and_spearman_by_counting_pairs():
    generator = np.random.default_rng(1)
    scores, accuracies = generator.integers(0, 6, 30).astype(float), generator.integers(0, 9, 30).astype(float)
    concordant = tied_a = tied_b = pairs = 0
    for i, j in itertools.combinations(range(30), 2):
        a, b = np.sign(scores[i] - scores[j]), np.sign(accuracies[i] - accuracies[j])
        concordant += a * b
        tied_a, tied_b, pairs = tied_a + (a == 0), tied_b + (b == 0), pairs + 1
    tau, rho, _ = statistics(scores, accuracies, accuracies)
    assert tau == pytest.approx(concordant / math.sqrt((pairs - tied_a) * (pairs - tied_b)))
    assert rho == pytest.approx(stats.spearmanr(scores, accuracies).statistic)
    assert all(math.isnan(v) for v in statistics(np.ones(30), accuracies, accuracies)[:2])


def test_ndcg_of_known_orders():
    gains = np.array([3.0, 2.0, 1.0, 0.0])
    assert ndcg(gains, gains, 4) == pytest.approx(1)
    assert ndcg(gains, gains, 2) == pytest.approx(1)
    best = 3 + 2 / math.log2(3)
    assert ndcg(-gains, gains, 2) == pytest.approx((0 + 1 / math.log2(3)) / best)
    # Equal scores: the mean over all orders.
    assert ndcg(np.zeros(4), gains, 2) == pytest.approx(
        np.mean([(a + b / math.log2(3)) / best for a, b in itertools.permutations(gains, 2)])
    )


def test_signs_say_that_more_is_better():
    """A kappa that falls with accuracy and an R that rises: both positive, and so is their sum of ranks. Singular is worst."""
    accuracy = np.arange(40.0)
    values = {KAPPA: np.exp(-accuracy)[:, None] * np.ones((1, 3)), REGIONS: accuracy[:, None]}
    values[KAPPA][0, 1] = math.inf
    scores = {name: Scores(get_measure(name), value, 0.5) for name, value in values.items()}
    places = oriented(scores)
    for name in (KAPPA, REGIONS, RANK_SUM):
        assert places[name].tolist() == list(range(1, 41))
    rows = correlations(scores, {"cifar10_test": accuracy}, 0)
    assert [row["subset"] for row in rows] == ["all"] * 3  # a tenth of 40 are too few
    for row in rows:
        assert row["kendall"] == row["spearman"] == row["ndcg"] == pytest.approx(1)
        assert row["seconds"] == {KAPPA: 1.5, REGIONS: 0.5, RANK_SUM: 2.0}[row["measure"]]
        assert row["worst"] == (row["measure"] != REGIONS)


@pytest.mark.parametrize("most", [correlate.MOST_IN_PAIRS, 0], ids=["pairs", "sorts"])
def test_statistics_of_resamples_are_those_of_each_alone(monkeypatch, most):
    """With ties in scores and in accuracies, and with resamples in which all are tied."""
    monkeypatch.setattr(correlate, "MOST_IN_PAIRS", most)
    generator = np.random.default_rng(2)
    scores, accuracies, gains = generator.integers(0, 8, 30) / 3, generator.integers(0, 12, 30) / 7, generator.random(30)
    samples = np.concatenate([generator.integers(30, size=(50, 30)), np.full((1, 30), 4)])
    found = correlate.resampled(scores, accuracies, gains, samples)
    expected = [correlate.statistics(scores[s], accuracies[s], gains[s]) for s in samples]
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(found[-1, :2]).all()


def test_intervals_cover_what_they_should(monkeypatch):
    """Samples of a Gaussian with a known correlation: tau = 2/pi arcsin(rho); the interval holds it in about 95 % of them."""
    monkeypatch.setattr(correlate, "RESAMPLES", 200)
    truth, covered = 2 / math.pi * math.asin(0.6), 0
    generator = np.random.default_rng(4)
    for _ in range(60):
        a, b = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 60).T
        (row,) = correlations({"naswot": Scores(get_measure("naswot"), a[:, None], 1.0)}, {"cifar10_test": b}, 0)
        assert row["kendall_low"] < row["kendall"] < row["kendall_high"]
        covered += row["kendall_low"] <= truth <= row["kendall_high"]
    assert covered >= 50


@pytest.mark.slow
def test_the_best_cells_are_a_subset_of_their_own():
    generator = np.random.default_rng(0)
    accuracy = np.arange(200.0)
    noise = np.where(accuracy >= 180, generator.random(200), accuracy - 1000)
    rows = correlations({"naswot": Scores(get_measure("naswot"), noise[:, None], 1.0)}, {"cifar10_test": accuracy}, 0)
    found = {row["subset"]: row for row in rows}
    assert found["all"]["kendall"] > 0.9
    assert found["top"]["cells"] == 20
    assert found["top"]["kendall_low"] < 0.4
    valid = accuracy % 2 == 0
    rows = correlations(
        {"naswot": Scores(get_measure("naswot"), noise[:, None], 1.0)}, {"cifar10_test": accuracy}, 0, valid=valid
    )
    found = {row["subset"]: row for row in rows}
    assert found["valid"]["cells"] == 100
    assert found["valid"]["kendall"] == pytest.approx(stats.kendalltau(noise[valid], accuracy[valid]).statistic)


def test_measures_of_ones_own_together_are_named(tmp_path):
    (tmp_path / "mine.py").write_text("from tenas.measures import Measure\nMEASURE = Measure('mine', len)\n")
    reference = f"{tmp_path}/mine.py:MEASURE"
    assert _together({"together": [[reference, "naswot"]]}) == [["mine", "naswot"]]


@pytest.mark.slow
def test_several_measures_together_by_ranks_and_by_log_ranks():
    generator = np.random.default_rng(6)
    naswot, snip, accuracy = generator.random((3, 50))
    scores = {
        "naswot": Scores(get_measure("naswot"), naswot[:, None], 1.0),
        "snip": Scores(get_measure("snip"), snip[:, None], 2.0),
    }
    rows = correlations(scores, {"cifar10_test": accuracy}, 0, together=[["naswot", "snip"]])
    found = {row["measure"]: row for row in rows}
    a, b = stats.rankdata(naswot), stats.rankdata(snip)
    for name, sums in (("rank_sum(naswot, snip)", a + b), ("log_rank_sum(naswot, snip)", np.log(a * b))):
        assert found[name]["kendall"] == pytest.approx(stats.kendalltau(sums, accuracy).statistic)
        assert found[name]["seconds"] == 3.0
        assert math.isnan(found[name]["single"])


def test_single_repeats_tell_how_much_a_draw_of_weights_matters():
    generator = np.random.default_rng(7)
    accuracy = np.arange(60.0)
    values = np.exp(-(accuracy[:, None] + 30 * generator.normal(size=(60, 5))))
    (row,) = correlations({KAPPA: Scores(get_measure(KAPPA), values, 0.5)}, {"cifar10_test": accuracy}, 0)
    single = [stats.kendalltau(-values[:, draw], accuracy).statistic for draw in range(5)]
    assert row["single"] == pytest.approx(np.mean(single))
    assert row["single_sd"] == pytest.approx(np.std(single, ddof=1))
    # A mean of several says more than one of them, and it is one of logarithms.
    assert row["single"] < row["kendall"] == pytest.approx(stats.kendalltau(-np.log(values).mean(axis=1), accuracy).statistic)
    assert row["seconds"] == 2.5
    # A measure with one repeat has no deviation, whatever is measured beside it.
    both = {
        KAPPA: Scores(get_measure(KAPPA), values, 0.5),
        "naswot": Scores(get_measure("naswot"), accuracy[:, None], 1.0),
    }
    found = {row["measure"]: row for row in correlations(both, {"cifar10_test": accuracy}, 0, resamples=2)}
    assert found[KAPPA]["single_sd"] == pytest.approx(row["single_sd"])
    assert math.isnan(found["naswot"]["single"])
    assert math.isnan(found["naswot"]["single_sd"])


# --- cells and settings


def test_cells_are_a_seeded_sample_of_the_index(tmp_path):
    index = write_index(tmp_path / "index.csv")
    cells = sample_table(settings(), index).cells
    assert len(set(cells)) == 24
    assert cells == tuple(sorted(cells)) == sample_table(settings(), index).cells
    assert cells != sample_table(settings(seed=4), index).cells
    rows = {int(row["index"]): row["arch"] for row in csv.DictReader(index.open())}
    assert all(rows[cell.number] == cell.arch for cell in cells)
    assert len(sample_table(settings(cells="all"), index).cells) == 200
    with pytest.raises(TenasError, match=r"asks for 201 cells, but the benchmark index .* has 200"):
        sample_table(settings(cells=201), index)
    without = sample_table(settings(cells="all", exclude=["none"]), index).cells
    assert [cell.arch for cell in without] == [rows[number] for number in sorted(rows) if "none" not in rows[number]]
    with pytest.raises(TenasError, match=r"asks for 200 cells, but the benchmark index .* has \d+ without none"):
        sample_table(settings(cells=200, exclude=["none"]), index)


def test_the_valid_cells_are_the_9445_of_the_literature():
    assert sum(is_valid(genotype) for genotype in NAS.genotypes()) == 9445
    # A node of a DARTS cell is part of the output; one that is fed by nothing makes what reads it an operator of nothing.
    darts = get_space("darts")
    fed = darts.random_genotype(darts.full_mask(("none",)), np.random.default_rng(0))
    assert is_valid(fed)
    cells = [[choice._replace(operator="none") if choice.target == 2 else choice for choice in cell] for cell in fed.cells]
    unfed = Genotype(darts, tuple(map(tuple, cells)))
    assert is_valid(unfed) == (not any(choice.source == 2 for cell in cells for choice in cell))


def test_shards_part_the_cells():
    numbers = list(range(10))
    whole = plan(settings()["measures"], numbers)
    assert len(whole) == 10 * 6
    shards = [plan(settings()["measures"], numbers, (shard, 3)) for shard in (1, 2, 3)]
    assert sorted(taken for shard in shards for taken in shard) == sorted(whole)


THREE = Cells(NAS, tuple(Cell(number, genotype.arch) for number, genotype in zip(range(3), NAS.genotypes(), strict=False)))


def rows_of(cells: Cells) -> list[dict]:
    measures = settings()["measures"]
    return score_rows(measures, cells, dict.fromkeys(plan(measures, cells.ids), 2.5))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda rows: rows[:-1], "lack 1 of 18 measurements, the first of them naswot of cell 2, repeat 0"),
        (lambda rows: [*rows, rows[0]], "a shard is given twice"),
        (lambda rows: [rows[0] | {"cell": 77}, *rows[1:]], "no measurement of this study"),
        (lambda rows: [rows[0] | {"arch": rows[-1]["arch"]}, *rows[1:]], "another subject than cell 0 of this study"),
        (lambda rows: [rows[0] | {"value": -1}, *rows[1:]], "never negative"),
        (lambda rows: [rows[0] | {"value": "much"}, *rows[1:]], "other than numbers"),
    ],
)
def test_a_damaged_scores_file_is_refused_with_a_sentence(tmp_path, damage, words):
    measures, path = settings()["measures"], tmp_path / "1.csv"
    write_csv(path, score_columns(THREE), rows_of(THREE))
    assert read_table_of_values([path], measures, THREE)[KAPPA].values.tolist() == [[2.5, 2.5]] * 3
    write_csv(path, score_columns(THREE), damage(rows_of(THREE)))
    with pytest.raises(TenasError, match=words):
        read_scores([path], measures, THREE, "this study")


def test_what_a_measurement_costs_is_read_from_the_records(tmp_path):
    """The mean over all shards, each with its own record."""
    measures, paths = settings()["measures"], []
    for shard, seconds in ((1, 3.0), (2, 1.0)):
        paths.append(tmp_path / f"{shard}.csv")
        planned = plan(measures, THREE.ids, (shard, 2))
        write_csv(paths[-1], score_columns(THREE), score_rows(measures, THREE, dict.fromkeys(planned, 2.5)))
        count = sum(m.measure == "snip" for m in planned)
        costs = {"snip": {"measurements": count, "seconds": seconds}}
        paths[-1].with_suffix(".json").write_text(json.dumps({"costs": costs}))
    found = read_table_of_values(paths, measures, THREE)
    assert found["snip"].seconds == pytest.approx(4 / 3)
    assert math.isnan(found["naswot"].seconds)
    assert found[KAPPA].measure.lower_is_better
    assert not found["snip"].measure.lower_is_better
    for damage in ({"snip": {"seconds": "3"}}, {"snip": 3.0}, [], {"snip": {"measurements": 3, "seconds": math.inf}}):
        paths[0].with_suffix(".json").write_text(json.dumps({"costs": damage}))
        with pytest.raises(TenasError, match=r"The record of scores .*1\.json is damaged: its costs are "):
            read_table_of_values(paths, measures, THREE)


def config(**study) -> dict:
    return {
        "shards": 3,
        "device": "cpu",
        "benchmark": {"nas-bench-201": "index.csv"},
        "datasets": TINY["datasets"],
        "studies": {"small": STUDY | study},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"studies": {"small": STUDY | {"cells": 3}}}, "studies.small.cells"),
        ({"studies": {"small": STUDY | {"measures": {"snap": SMALL}}}}, "Unknown measure 'snap'"),
        (
            {"studies": {"small": STUDY | {"measures": {"snip": {"repeats": 1}}}}},
            "the key 'weights' is missing in 'measures.snip'",
        ),
        ({"studies": {"small": STUDY | {"dataset": "cifar"}}}, "'cifar'"),
        ({"studies": {"small": STUDY | {"exclude": ["noone"]}}}, "'noone'"),
        ({"studies": {"small": STUDY | {"together": [["naswot", "zen"]]}}}, "'together' names 'zen'"),
        ({"studies": {"small": STUDY | {"space": "nas"}}}, "'nas'"),
        ({"benchmark": {"nas-bench-201": None}}, "needs the table of nas-bench-201"),
        ({"runs": {"small": TINY["runs"]["digits"]}}, "the name of a run and of a study"),
        ({"studies": {}}, "nothing to do"),
    ],
)
def test_a_fault_in_the_configuration_is_a_sentence(change, words):
    load_config(config())
    with pytest.raises(TenasError, match=words):
        load_config(config() | change)


def test_the_studys_own_configuration_measures_everything():
    given = yaml.safe_load((ROOT / "config" / "study-nas-bench-201.yaml").read_text())
    (study,) = load_config(given)["studies"].values()
    assert set(study["measures"]) == set(MEASURES)


# --- the workflow


def scores_of(folder: Path) -> set[tuple]:
    """All measurements."""
    rows = [row for path in (folder / "results/small/scores").glob("*.csv") for row in csv.DictReader(path.open())]
    return {(row["cell"], row["measure"], row["repeat"], row["value"]) for row in rows}


def correlations_of(folder: Path) -> list[dict]:
    """The table but its seconds."""
    rows = csv.DictReader((folder / "results/small/correlations.csv").open())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studied")
    write_config(folder, config())
    write_index(folder / "index.csv")
    succeed(snakemake(folder))
    return folder


@pytest.mark.workflow
def test_a_study_makes_its_files(studied):
    results = studied / "results/small"
    made = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert made == {"study.json", "cells.csv", "correlations.csv", "correlations.json", "forest.svg", "scatter.svg"} | {
        f"scores/{shard}.{kind}" for shard in (1, 2, 3) for kind in ("csv", "json")
    }
    assert json.loads((results / "study.json").read_text()) == settings()
    rows = list(csv.DictReader((results / "correlations.csv").open()))
    assert {(row["measure"], row["accuracy"]) for row in rows} == {
        (name, accuracy) for name in [*STUDY["measures"], RANK_SUM] for accuracy in ("cifar10_test", "cifar100_test")
    }
    found = {(row["measure"], row["accuracy"]): float(row["kendall"]) for row in rows}
    # Accuracy in this index follows from the operators, as parameters do; the second one is the first with its sign turned.
    assert found["parameters", "cifar10_test"] > 0.3
    assert found["snip", "cifar100_test"] == pytest.approx(-found["snip", "cifar10_test"])
    made = json.loads((results / "correlations.json").read_text())
    assert len(made["inputs"]) == 2 + 3
    for name in ("forest.svg", "scatter.svg"):
        text = (results / name).read_text()
        assert text.startswith("<?xml")
        assert RANK_SUM in text


@pytest.mark.long
@pytest.mark.workflow
def test_the_same_values_for_any_shards_and_processes(studied, tmp_path):
    write_config(tmp_path, config() | {"shards": 1, "threads": {"score": 2}})
    write_index(tmp_path / "index.csv")
    succeed(snakemake(tmp_path))
    assert scores_of(tmp_path) == scores_of(studied)
    assert correlations_of(tmp_path) == correlations_of(studied)


@pytest.mark.workflow
def test_a_second_run_has_nothing_to_do_and_a_report_shows_the_study(studied):
    assert "Nothing to be done" in succeed(snakemake(studied))
    succeed(snakemake(studied, "--report", "report.html"))
    page = (studied / "report.html").read_text()
    for name in ("forest.svg", "scatter.svg", "correlations.csv"):
        assert name in page


@pytest.mark.workflow
def test_a_measurement_is_the_public_measure_of_the_public_network(studied):
    import torch

    from tenas.data import read_images, read_labels
    from tenas.measures import linear_regions, snip
    from tenas.networks import Network, SupernetCells, initialise
    from tenas.scoring.inputs import draw_crops, draw_images, draw_indices
    from tenas.seeds import derive_seed
    from tenas.spaces import load_genotype

    torch.set_num_threads(1)
    path = studied / "data/digits/images.npy"
    (images, card), labels = read_images(path), read_labels(path)
    values = {(int(cell), name, int(repeat)): float(value) for cell, name, repeat, value in scores_of(studied)}
    cell = next(csv.DictReader((studied / "results/small/cells.csv").open()))
    number, genotype = int(cell["cell"]), load_genotype(cell["arch"])

    network = Network(genotype, channels=2, cells=1, classes=10)
    initialise(network, "kaiming_fan_in", derive_seed(3, 0, "snip", "weights"))
    seed = derive_seed(3, 0, "snip", "inputs")
    chosen = draw_indices(len(images), 4, seed)
    expected = snip(network, draw_images(images, card, 4, seed), torch.from_numpy(labels[chosen]))
    assert values[number, "snip", 0] == pytest.approx(expected, rel=1e-5)

    cells = SupernetCells(NAS, NAS.mask(genotype), channels=1)
    initialise(cells, "kaiming_fan_in", derive_seed(3, 0, REGIONS, "weights"))
    crops = draw_crops(images, card, 60, derive_seed(3, 0, REGIONS, "inputs"))
    assert values[number, REGIONS, 0] == linear_regions(cells, crops.split(20))


def test_parameters_order_the_benchmark_as_is_known():
    """Spearman of FLOPs on CIFAR-10's test accuracy over all cells: .80 in the literature; parameters are as good."""
    from tenas.benchmark import read_index

    table = read_index("builtin")
    accuracy = table["cifar10_test"].to_numpy()
    tau, rho, top = statistics(table["flops_cifar10"].to_numpy(float), accuracy, stats.rankdata(accuracy) / len(accuracy))
    assert rho == pytest.approx(0.80, abs=0.06)
    assert 0.5 < tau < rho
    assert 0.6 < top < 1
