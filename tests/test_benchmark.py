"""The benchmark look-up, against the published optima and an independent sort."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tenas.benchmark import ACCURACIES, look_up, read_index
from tenas.errors import TenasError
from tenas.networks import Network
from tenas.spaces import get_space, load_genotype

SHARED = os.environ.get("TENAS_SHARED", "")
INDEX = Path(SHARED) / "nb201.csv.gz"
needs_index = pytest.mark.skipif(not SHARED, reason="TENAS_SHARED (a folder with nb201.csv.gz) is not set")
CELLS = [genotype.arch for _, genotype in zip(range(6), get_space("nas-bench-201").genotypes(), strict=False)]


def small_table(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({"arch": CELLS, "cifar10_test": [90.0, 93.0, 91.0, 93.0, 94.0, 80.0], **columns})


def save(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@needs_index
@pytest.mark.parametrize(
    ("accuracy", "best", "row"),
    [("cifar10_test", 94.3733, 6111), ("cifar100_test", 73.5133, 9930), ("imagenet16_test", 47.3111, 857)],
)
def test_the_published_optima_are_found(accuracy, best, row):
    table = read_index(INDEX)
    anything = look_up(load_genotype(table["arch"][0]), INDEX)
    optimum = look_up(load_genotype(anything["accuracies"][accuracy]["best_arch"]), INDEX)
    assert optimum["row"] == row
    assert optimum["cells"] == 15_625
    assert optimum["accuracies"][accuracy]["accuracy"] == pytest.approx(best, abs=1e-4)
    assert optimum["accuracies"][accuracy]["rank"] == 1
    assert optimum["accuracies"][accuracy]["regret"] == 0


@needs_index
def test_ranks_are_those_of_a_sort():
    table = read_index(INDEX)
    chosen = np.random.default_rng(0).choice(len(table), 8, replace=False)
    for row in chosen:
        found = look_up(load_genotype(table["arch"][row]), INDEX)
        assert found["row"] == row
        assert list(found["accuracies"]) == list(ACCURACIES)
        for name, standing in found["accuracies"].items():
            descending = np.sort(table[name].to_numpy())[::-1]
            assert standing["accuracy"] == table[name][row]
            assert standing["rank"] == 1 + np.flatnonzero(descending == standing["accuracy"])[0]
            assert standing["regret"] == pytest.approx(descending[0] - standing["accuracy"])


@needs_index
def test_every_cell_of_the_space_is_in_the_index():
    assert set(read_index(INDEX)["arch"]) == {genotype.arch for genotype in get_space("nas-bench-201").genotypes()}


@needs_index
def test_networks_have_the_parameters_of_the_index():
    table = read_index(INDEX)
    for row in np.random.default_rng(1).choice(len(table), 12, replace=False):
        for name, classes in (("cifar10", 10), ("cifar100", 100), ("imagenet16", 120)):
            network = Network(table["arch"][row], channels=16, cells=5, classes=classes)
            assert sum(p.numel() for p in network.parameters()) == table[f"params_{name}"][row]


@pytest.mark.parametrize("name", ["index.csv", "index.csv.gz", "index.parquet"])
def test_each_format_is_read(tmp_path, name):
    index = save(small_table(params_cifar10=[1, 2, 3, 4, 5, 6]), tmp_path / name)
    found = look_up(load_genotype(CELLS[2]), index)
    assert found["accuracies"] == {
        "cifar10_test": {"accuracy": 91.0, "rank": 4, "best": 94.0, "best_arch": CELLS[4], "regret": 3.0}
    }
    assert found["costs"] == {"params_cifar10": 3}
    assert found["row"] == 2
    assert list(found["provenance"]["inputs"]) == [str(index)]


def test_equal_cells_share_the_better_rank(tmp_path):
    index = save(small_table(), tmp_path / "index.csv")
    assert [look_up(load_genotype(CELLS[i]), index)["accuracies"]["cifar10_test"]["rank"] for i in (1, 3)] == [2, 2]


def test_a_cell_without_an_accuracy_has_none(tmp_path):
    index = save(small_table(cifar100_test=[70.0, None, 71.0, 72.0, 73.0, 74.0]), tmp_path / "index.csv")
    assert look_up(load_genotype(CELLS[1]), index)["accuracies"]["cifar100_test"] is None
    assert look_up(load_genotype(CELLS[0]), index)["accuracies"]["cifar100_test"]["rank"] == 5


def test_without_an_index_the_output_says_so():
    found = look_up(load_genotype(CELLS[0]), None)
    assert found["arch"] == CELLS[0]
    assert found["index"] is None
    assert found["reason"] == "No index file was given for the space nas-bench-201."


def test_a_faulty_index_gets_a_sentence(tmp_path):
    genotype = load_genotype(CELLS[0])

    def refused(path: Path, sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            look_up(genotype, path)

    refused(tmp_path / "absent.csv", r"There is no benchmark index .*absent\.csv")
    for name in ("index.csv.gz", "index.parquet"):
        whole = save(small_table(), tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / name, "cannot be read")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "cannot be read")
    refused(save(small_table().rename(columns={"arch": "cell"}), tmp_path / "a.csv"), "no column 'arch'")
    refused(save(small_table()[["arch"]], tmp_path / "b.csv"), "no column of accuracies; known: cifar10_valid")
    refused(save(small_table(cifar10_valid=list("abcdef")), tmp_path / "c.csv"), "numbers in the column 'cifar10_valid'")
    refused(save(pd.concat([small_table()] * 2), tmp_path / "d.csv"), "lists the cell .* twice")
    refused(save(small_table().iloc[1:], tmp_path / "e.csv"), "has no cell .*: is it of another space")
