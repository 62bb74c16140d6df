"""The benchmark look-up, against the published optima, an independent sort, and an independent meaning of isomorphism."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import SHARED

from tenas.benchmark import accuracies_of, canonical_form, isomorphic, look_up, query, read_index
from tenas.benchmark.builtin import CHECKSUMS
from tenas.cli import main
from tenas.errors import TenasError
from tenas.spaces import get_space, load_genotype

# Every table here has a few cells of its space.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
CELLS = [genotype.arch for _, genotype in zip(range(6), get_space("nas-bench-201").genotypes(), strict=False)]


def test_types_of_pandas_with_values_that_are_missing(tmp_path):
    table = pd.DataFrame({"arch": CELLS, "cifar10_test": 90.5, "cifar100_test": 70.5, "params_cifar10": 5}).convert_dtypes()
    table.loc[1, ["cifar100_test", "params_cifar10"]] = pd.NA
    index = save(table, tmp_path / "index.parquet")
    assert str(table.dtypes["cifar100_test"]) == "Float64"
    found = look_up(load_genotype(CELLS[1]), index)
    assert (found["accuracies"]["cifar100_test"], found["costs"]["params_cifar10"]) == (None, None)
    assert found["accuracies"]["cifar10_test"]["accuracy"] == 90.5


def small_table(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({"arch": CELLS, "cifar10_test": [90.0, 93.0, 91.0, 93.0, 94.0, 80.0], **columns})


def save(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("accuracy", "best", "row"),
    [("cifar10_test", 94.3733, 6111), ("cifar100_test", 73.5133, 9930), ("imagenet16_test", 47.3111, 857)],
)
def test_the_published_optima_are_found(accuracy, best, row):
    anything = look_up(0)
    optimum = look_up(load_genotype(anything["accuracies"][accuracy]["best_arch"]))
    assert optimum["row"] == row
    assert optimum["cells"] == 15_625
    assert optimum["accuracies"][accuracy]["accuracy"] == pytest.approx(best, abs=1e-4)
    assert optimum["accuracies"][accuracy]["rank"] == 1
    assert optimum["accuracies"][accuracy]["regret"] == 0


@pytest.mark.slow
def test_ranks_are_those_of_a_sort():
    table = read_index("builtin")
    chosen = np.random.default_rng(0).choice(len(table), 8, replace=False)
    for row in chosen:
        found = query(table, table["arch"][row])
        assert found["row"] == row
        assert len(found["accuracies"]) == 8
        assert list(found["accuracies"]) == accuracies_of(table)
        for name, standing in found["accuracies"].items():
            descending = np.sort(table[name].to_numpy())[::-1]
            assert standing["accuracy"] == table[name][row]
            assert standing["rank"] == 1 + np.flatnonzero(descending == standing["accuracy"])[0]
            assert standing["regret"] == pytest.approx(descending[0] - standing["accuracy"])
            assert standing["percentile"] == pytest.approx(100 * np.mean(table[name] < standing["accuracy"]))


def test_every_cell_of_the_space_is_in_the_index():
    assert set(read_index("builtin")["arch"]) == {genotype.arch for genotype in get_space("nas-bench-201").genotypes()}


@pytest.mark.parametrize("name", ["index.csv", "index.csv.gz", "index.parquet"])
def test_each_format_is_read(tmp_path, name):
    index = save(small_table(params_cifar10=[1, 2, 3, 4, 5, 6]), tmp_path / name)
    found = look_up(load_genotype(CELLS[2]), index)
    assert found["accuracies"] == {
        "cifar10_test": {
            "accuracy": 91.0,
            "rank": 4,
            "percentile": pytest.approx(100 * 2 / 6),
            "best": 94.0,
            "best_arch": CELLS[4],
            "regret": 3.0,
        }
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


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_both_names_of_a_mean_after_200_epochs_are_known(tmp_path, name):
    plain = small_table(cifar100_test_e12=[1.0] * 6, train_time_cifar10_s=[2.0] * 6)
    renamed = plain.rename(columns={"cifar10_test": "cifar10_test_e200", "train_time_cifar10_s": "cifar10_train_seconds_e200"})
    tables = [read_index(save(table, tmp_path / name)) for table in (plain, renamed)]
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[0].columns) == ["arch", "cifar10_test", "cifar100_test_e12", "cifar10_train_seconds"]


def test_a_cell_is_found_by_text_number_genotype_and_file(tmp_path):
    table = small_table(index=[10, 11, 12, 13, 14, 15])
    genotype = load_genotype(CELLS[3])
    (tmp_path / "genotype.json").write_text(json.dumps(genotype.to_json()))
    found = [query(table, cell) for cell in (CELLS[3], 13, np.int64(13), "13", genotype, tmp_path / "genotype.json")]
    assert all(one == found[0] for one in found)
    assert (found[0]["arch"], found[0]["row"], found[0]["cells"]) == (CELLS[3], 13, 6)
    # Without such a column the number is that of the row.
    assert query(small_table(), 3)["row"] == 3
    for cell, sentence in ((3, "no cell of the number 3; it has 6 cells"), (CELLS[3][:-3], "is not the text of a genotype")):
        with pytest.raises(TenasError, match=sentence):
            query(table, cell)


# --- isomorphism


def fingerprints() -> dict[str, bytes]:
    """Each cell's output on one input, its operators being random functions that a sum doesn't pass through.

    Zero goes to zero for the pooling, and to a constant for the convolutions, as in a trained network. Two cells agree here when
    they are the same sums of the same functions, and but for an improbable chance only then.
    """
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(8, 8)) for name in ("nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")}
    constants = {"nor_conv_1x1": 0.3, "nor_conv_3x3": 0.7, "avg_pool_3x3": 0.0}
    first = generator.normal(size=8)

    def apply(operator: str, x: np.ndarray) -> np.ndarray:
        if operator in ("none", "skip_connect"):
            return x * (operator != "none")
        return np.tanh(weights[operator] @ x + constants[operator])

    found = {}
    for genotype in get_space("nas-bench-201").genotypes():
        nodes = [first]
        for node in genotype.arch.split("+"):
            nodes.append(sum(apply(op, nodes[int(source)]) for op, source in re.findall(r"(\w+)~(\d)", node)))
        # Rounded: a sum depends a little on its order. Without minus zeros.
        found[genotype.arch] = (np.round(nodes[-1], 9) + 0.0).tobytes()
    return found


def test_isomorphic_cells_are_those_that_compute_the_same():
    prints, forms = fingerprints(), {}
    for genotype in get_space("nas-bench-201").genotypes():
        forms[genotype.arch] = canonical_form(genotype)
    # The same partition of all cells: as many classes in each as in both together.
    assert len(set(forms.values())) == len(set(prints.values())) == len({(forms[a], prints[a]) for a in forms}) == 5545


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", ""),
        ("|skip_connect~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|", "x"),
        # The same convolution once over node 1 and once over node 2; what leads nowhere is left out.
        ("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|", "nor_conv_3x3(x)"),
        ("|nor_conv_1x1~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|skip_connect~2|", "nor_conv_3x3(x)"),
        # Pooling nothing is nothing; convolving nothing is a constant.
        ("|none~0|+|none~0|avg_pool_3x3~1|+|none~0|none~1|avg_pool_3x3~2|", ""),
        ("|none~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|avg_pool_3x3~2|", "avg_pool_3x3(nor_conv_1x1())"),
    ],
)
def test_canonical_forms(cell, form):
    assert canonical_form(load_genotype(cell)) == form


@pytest.mark.data
def test_the_benchmarks_own_count_of_topologies():
    """6,466 texts (NATS-Bench, table 1). Ours tells more cells apart where a convolution has no input, and else fewer."""
    table = read_index(SHARED / "nb201.csv.gz")
    assert table["unique_str"].nunique() == 6466
    # Where no edge is `none`, its texts differ at most in the order of a sum: no text holds two of our forms.
    whole = table[~table["arch"].str.contains("none")]
    forms = [canonical_form(load_genotype(arch)) for arch in whole["arch"]]
    pairs = set(zip(forms, whole["unique_str"], strict=True))
    assert len(pairs) == whole["unique_str"].nunique() > len(set(forms))


def test_isomorphic_cells_have_the_accuracies_of_one_network():
    """They differ by chance alone: a fraction of a point, where cells in general differ by several."""
    table = read_index("builtin")
    found = look_up("|skip_connect~0|+|none~0|skip_connect~1|+|nor_conv_3x3~0|none~1|none~2|")
    same = {*found["isomorphic"]["cells"], found["arch"]}
    assert same == {arch for arch in table["arch"] if canonical_form(load_genotype(arch)) == "nor_conv_3x3(x)"}
    assert len(same) > 100
    values = table["cifar10_test"][table["arch"].isin(same)]
    spread = found["isomorphic"]["spread"]["cifar10_test"]
    assert spread == pytest.approx({"mean": values.mean(), "sd": values.std(ddof=1), "min": values.min(), "max": values.max()})
    assert spread["sd"] < 0.5 < 5 < table["cifar10_test"].std()
    groups = defaultdict(list)
    for place, arch in enumerate(table["arch"][:2000]):
        groups[canonical_form(load_genotype(arch))].append(place)
    place = max(groups.values(), key=len)[0]
    assert isomorphic(load_genotype(table["arch"][place]), table["arch"][:2000]) == max(groups.values(), key=len)


def test_a_cell_that_is_alone_has_no_spread():
    # Of the six it alone convolves: nothing, with a kernel of one pixel.
    spread = query(small_table(), CELLS[2])["isomorphic"]
    assert spread == {"cells": [], "spread": {"cifar10_test": {"mean": 91.0, "sd": None, "min": 91.0, "max": 91.0}}}
    assert len(query(small_table(), CELLS[5])["isomorphic"]["cells"]) == 3


# --- the command


def test_the_command_prints_a_table_or_writes_json(tmp_path, capsys):
    assert main(["benchmark", "query", "857"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^imagenet16_test +47\.31 +1 +99\.99 +0\.00 ", said, re.MULTILINE)
    assert re.search(r"^params_cifar10 +[\d,]+$", said, re.MULTILINE)
    arch = said.splitlines()[0]
    assert main(["benchmark", "query", arch, "--index", "builtin", "--out", str(tmp_path / "benchmark.json")]) == 0
    assert capsys.readouterr().out == ""
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert (written["row"], written["cells"]) == (857, 15_625)
    # Not by its place on this machine.
    assert written["provenance"]["inputs"] == {"tenas/benchmark/tables/nas-bench-201.parquet": CHECKSUMS["nas-bench-201"]}
    assert written["index"] == "builtin"
    assert main(["benchmark", "query", arch, "--index", "none"]) == 0
    assert "No index file was given for the space nas-bench-201." in capsys.readouterr().out
    assert main(["benchmark", "query", "15625"]) == 2
    assert capsys.readouterr().err == "tenas: The benchmark index has no cell of the number 15625; it has 15625 cells.\n"


def test_without_an_index_the_output_says_so():
    found = look_up(load_genotype(CELLS[0]), None)
    assert found["arch"] == CELLS[0]
    assert found["index"] is None
    assert found["reason"] == "No index file was given for the space nas-bench-201."


def test_a_cell_of_a_table_is_a_text_and_no_file(tmp_path):
    """As a path, it named a genotype's file, that a space, and the space's file was run."""
    (tmp_path / "space.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    (tmp_path / "g.json").write_text(json.dumps({"space": f"{tmp_path / 'space.py'}:SPACE", "arch": CELLS[0]}))
    (tmp_path / "t.csv").write_text(f"arch,x_test\n{tmp_path / 'g.json'},90\n")
    for command in (["query", "0", "--index", tmp_path / "t.csv"], ["compare", tmp_path / "t.csv"]):
        assert main(["benchmark", *map(str, command)]) == 2
    assert not (tmp_path / "run").exists()


def test_a_faulty_index_gets_a_sentence(tmp_path):
    genotype = load_genotype(CELLS[0])

    def refused(path: Path, sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            look_up(genotype, path)

    refused(tmp_path / "absent.csv", r"There is no benchmark index .*absent\.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    refused(tmp_path / "loop.csv", "cannot be read: Too many levels of symbolic links")
    refused(Path("/dev/zero"), "The benchmark index /dev/zero is a device, not a file")
    for name in ("index.csv.gz", "index.parquet"):
        whole = save(small_table(), tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / name, "cannot be read")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "cannot be read")
    refused(save(small_table().rename(columns={"arch": "cell"}), tmp_path / "a.csv"), "no column 'arch'")
    refused(
        save(small_table()[["arch"]], tmp_path / "b.csv"),
        "no column of accuracies, whose names end in _test, _valid, _valtest, accuracy",
    )
    refused(save(small_table(cifar10_valid=list("abcdef")), tmp_path / "c.csv"), "numbers in the column 'cifar10_valid'")
    named_twice = small_table(cifar10_test_e200=[1.0] * 6)
    refused(save(named_twice, tmp_path / "f.csv"), "has the column 'cifar10_test' under two names")
    refused(save(pd.concat([small_table()] * 2), tmp_path / "d.csv"), "lists the cell .* twice")
    refused(save(small_table().iloc[1:], tmp_path / "e.csv"), "has no cell .*: is it of another space")
    for number in (-1, 0.5, "x", None, "1" * 70, "1" * 400, "1" * 5000):
        numbered = small_table(index=[0, 1, number, 3, 4, 5])
        shown = str(number or "nan")[:70]
        refused(save(numbered, tmp_path / "g.csv"), rf"row 3: 'index' is '{shown}[1.]*'?; it must be a whole number from 0")
    text = (tmp_path / "e.csv").read_bytes()
    for data, sentence in (
        (text.replace(b"arch,", b"arch,arch,", 1), "it has the column 'arch' twice"),
        (text.replace(b",", b";"), "its columns are separated by ';': save it with commas"),
        (text.replace(b",", b"\t"), r"its columns are separated by '\\t'"),
        (b'\x04"M\x18' + text, "packed in a way that is not known"),
        (text.replace(b"|", b'"', 1), "is no operator|is not the text|EOF inside string|fields, not"),
        (text[:-1] + b"x" * 200_000 + b"\n", "field larger than field limit"),
    ):
        (tmp_path / "h.csv").write_bytes(data)
        refused(tmp_path / "h.csv", sentence)
