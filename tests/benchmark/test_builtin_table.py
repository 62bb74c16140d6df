"""The table that comes with the project, against official records and built networks; damaged tables; tables of other spaces."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers import ROOT, SHARED
from pyarrow import parquet

from tenas.benchmark import (
    accuracies_of,
    builtin_table,
    is_accuracy,
    isomorphic,
    look_up,
    query,
    read_column,
    read_index,
)
from tenas.benchmark.builtin import CHECKSUMS
from tenas.benchmark.compare import compare, describe_comparison
from tenas.benchmark.index import IncompleteTableWarning, SharesWarning
from tenas.cli import main
from tenas.config import load_config
from tenas.errors import TenasError
from tenas.files import sha256
from tenas.networks import Network, count_flops, count_parameters
from tenas.spaces import get_space, load_genotype

TABLE = builtin_table()
NB201 = get_space("nas-bench-201")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return read_index("builtin")


# --- what it says


def test_the_table_has_every_cell_of_the_space(table):
    assert sha256(TABLE) == CHECKSUMS["nas-bench-201"]
    assert TABLE.stat().st_size < 1_000_000
    assert list(table["index"]) == list(range(15_625))
    assert set(table["arch"]) == {genotype.arch for genotype in NB201.genotypes()}
    assert NB201.listed_cells == 15_625
    assert not table.isna().any().any()
    accuracies = table[[name for name in table if is_accuracy(name.removesuffix("_e12"))]]
    assert accuracies.shape[1] == 8 + 6
    # Nothing is worse than a guess among ImageNet16-120's classes, but for the rounding.
    assert accuracies.min().min() >= round(100 / 120, 5)
    assert accuracies.max().max() < 100


def test_the_table_passes_the_checks_that_others_have_to_pass(table, tmp_path, recwarn):
    shutil.copy(TABLE, tmp_path / "copy.parquet")
    pd.testing.assert_frame_equal(read_index(tmp_path / "copy.parquet"), table)
    assert not recwarn.list


@pytest.mark.data
def test_the_official_records_are_in_the_table(table):
    records = json.loads((SHARED / "nb201_official_records_0_11_284.json").read_text())
    names = {
        ("cifar10-valid", "x-valid"): "cifar10_valid", ("cifar10", "ori-test"): "cifar10_test",
        ("cifar100", "x-valid"): "cifar100_valid", ("cifar100", "x-test"): "cifar100_test",
        ("cifar100", "ori-test"): "cifar100_valtest", ("ImageNet16-120", "x-valid"): "imagenet16_valid",
        ("ImageNet16-120", "x-test"): "imagenet16_test", ("ImageNet16-120", "ori-test"): "imagenet16_valtest",
    }  # fmt: skip
    compared = set()
    for number, known in records.items():
        row = table.iloc[int(number)]
        assert (row["index"], row["arch"]) == (int(number), known["arch"])
        for epochs, trials in known["hp"].items():
            seeds = defaultdict(list)
            for trial in trials:
                dataset = trial["dataset"].replace("ImageNet16-120", "imagenet16").removesuffix("-valid")
                assert row[f"params_{dataset}"] == round(trial["params_M"] * 1e6)
                assert row[f"flops_{dataset}"] == round(trial["flops_M"] * 1e6)
                for part, accuracy in trial["eval_acc"].items():
                    seeds[trial["dataset"], part].append(accuracy)
            for key, name in names.items():
                name += {"12": "_e12", "200": ""}[epochs]
                if name in table:
                    # Printed with five decimals; some are computed from two others.
                    assert row[name] == pytest.approx(fmean(seeds[key]), abs=1.6e-5), (number, name)
                    compared.add((number, name))
    assert len(compared) == 3 * (8 + 6)


@pytest.mark.data
@pytest.mark.slow
def test_the_table_is_its_source_to_the_last_printed_digit(tmp_path):
    """And the script makes it again; byte by byte where pyarrow is the one that wrote it."""
    spec = spec_from_file_location("make_table", ROOT / "scripts" / "make_table.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make_table(SHARED / "nb201.csv.gz", tmp_path / "again.parquet")
    shipped, again = parquet.ParquetFile(TABLE), parquet.ParquetFile(tmp_path / "again.parquet")
    assert again.read().equals(shipped.read(), check_metadata=True)
    if again.metadata.created_by == shipped.metadata.created_by:
        assert (tmp_path / "again.parquet").read_bytes() == TABLE.read_bytes()
    printed = pd.read_csv(SHARED / "nb201.csv.gz", dtype=str)
    table = shipped.read().to_pandas()
    assert set(table.columns) <= {re.sub(r"train_time_(\w+)_s", r"\1_train_seconds", name) for name in printed}
    for name in table.columns:
        other = re.sub(r"(\w+)_train_seconds", r"train_time_\1_s", name)
        assert all(str(a) == b or a == float(b) for a, b in zip(table[name], printed[other], strict=True)), name


def test_the_known_optima_and_extremes(table):
    for name, best, number in (
        ("cifar10_test", 94.3733, 6111), ("cifar100_test", 73.5133, 9930), ("imagenet16_test", 47.3111, 857),
    ):  # fmt: skip
        assert table[name].idxmax() == number
        assert table[name].max() == pytest.approx(best, abs=5e-5)
    assert table["params_cifar10"].max() == 1_531_546
    assert table["flops_cifar10"].max() == 220_119_690


@pytest.mark.slow
def test_parameters_and_flops_are_those_of_built_networks(table):
    for row in table.iloc[np.random.default_rng(4).choice(len(table), 20, replace=False)].itertuples():
        for dataset, classes, side in (("cifar10", 10, 32), ("cifar100", 100, 32), ("imagenet16", 120, 16)):
            network = Network(row.arch, channels=16, cells=5, classes=classes)
            assert count_parameters(network) == getattr(row, f"params_{dataset}")
            assert count_flops(network, (3, side, side)) == getattr(row, f"flops_{dataset}")


# --- what is called builtin


def test_a_cell_is_looked_up_without_a_file_and_without_torch(tmp_path):
    code = "import sys; from tenas.cli import main; assert main(sys.argv[1:]) == 0; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "benchmark", "query", "6111", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["accuracies"]["cifar10_test"]["rank"] == 1
    assert found["provenance"]["inputs"] == {"tenas/benchmark/tables/nas-bench-201.parquet": CHECKSUMS["nas-bench-201"]}


def test_a_space_without_a_table_has_a_reason():
    cell = darts_cells(1)[0]
    found = look_up(cell)
    assert (found["index"], found["reason"]) == (None, "No table of the space darts comes with the project.")
    assert look_up(cell, None)["reason"] == "No index file was given for the space darts."
    with pytest.raises(TenasError, match="There is no built-in table of the space darts, only of nas-bench-201"):
        read_index("builtin", "darts")


def config(**more) -> dict:
    run = {"space": "nas-bench-201", "dataset": "digits", "preset": "pruning", "seeds": [0]}
    return {"datasets": {"digits": {"source": "digits"}}, "runs": {"one": run}} | more


def test_the_configuration_takes_it_where_it_says_nothing():
    assert load_config(config())["benchmark"] == {"nas-bench-201": "builtin"}
    mine = {"nas-bench-201": "mine.csv"}
    assert load_config(config(benchmark=mine))["benchmark"] == mine
    assert load_config(config(benchmark={"darts": "mine.csv"}))["benchmark"] == {"nas-bench-201": "builtin", "darts": "mine.csv"}
    none = config(benchmark={"nas-bench-201": None})
    assert load_config(none)["benchmark"] == {"nas-bench-201": None}
    with pytest.raises(TenasError, match=r"'table_search' needs a table under 'benchmark\.nas-bench-201'"):
        load_config(none | {"table_search": {}})
    for benchmark, sentence in (
        ({"darts": "builtin"}, "'benchmark': There is no built-in table of the space darts"),
        ({"nas": "mine.csv"}, "'benchmark': Unknown space 'nas'"),
    ):
        with pytest.raises(TenasError, match=sentence):
            load_config(config(benchmark=benchmark))


# --- damaged tables


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(TenasError, match=sentence) as refusal:
        read_index(path)
    assert "\n" not in str(refusal.value)


def test_a_damaged_built_in_table_is_refused(tmp_path, monkeypatch):
    import tenas.benchmark.builtin as builtin

    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    path = tmp_path / TABLE.name
    damaged = bytearray(TABLE.read_bytes())
    damaged[300_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TenasError, match=r"nas-bench-201\.parquet is damaged: its SHA-256 is \w{64}, not " + sha256(TABLE)):
        read_index("builtin")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 778765\n")
    with pytest.raises(TenasError, match="is a pointer of Git LFS, not the table: `git lfs pull` fetches that"):
        read_index("builtin")
    path.unlink()
    with pytest.raises(TenasError, match="There is no benchmark index"):
        read_index("builtin")


def test_a_bit_of_a_copy_is_found_too(tmp_path):
    """Its name is not known, but its pages have checksums."""
    whole = TABLE.read_bytes()
    for place in random.Random(0).sample(range(1000, 700_000), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        (tmp_path / "copy.parquet").write_bytes(damaged)
        refused(tmp_path / "copy.parquet", "copy.parquet cannot be read: ")


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def zipped(data: bytes, names: tuple[str, ...] = ("table.csv",)) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zip", zipped), (".zst", zstd)],
)
@pytest.mark.slow
def test_a_table_is_read_in_every_packing_and_refused_when_it_is_cut(table, tmp_path, suffix, pack):
    text = table.to_csv(index=False).encode()
    packed = pack(text)
    # What it is, the bytes say.
    for path in (tmp_path / f"index.csv{suffix}", tmp_path / "index.csv"):
        path.write_bytes(packed)
        pd.testing.assert_frame_equal(read_index(path), table, check_dtype=False)
        path.write_bytes(packed[: len(packed) // 2])
        refused(path, "cannot be read: ")
        path.write_bytes(packed[:12])
        refused(path, "cannot be read: ")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped, zstd])
def test_what_unpacks_to_far_more_than_it_is_is_refused_before_memory_is_taken(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("tenas.files.LARGE", 2**16)
    (tmp_path / "index.csv").write_bytes(pack(bytes(4 * 2**20)))
    refused(tmp_path / "index.csv", r"would unpack from [\d,]+ to more than [\d,]+ bytes, as no table does")


def test_a_parquet_file_of_endless_equal_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tenas.files.LARGE", 2**16)
    parquet.write_table(pa.table({"arch": ["a"] * 200_000}), tmp_path / "index.parquet")
    refused(tmp_path / "index.parquet", r"would unpack from [\d,]+ to 1,600,000 bytes, as no table does")


@pytest.mark.parametrize("record", ["[]", "3", '{"source": []}', '{"source": [1]}', "{"])
def test_a_parquet_file_with_another_record_is_refused_or_has_none(table, tmp_path, record):
    made = pa.Table.from_pandas(table.head(4)).replace_schema_metadata({b"tenas": record})
    parquet.write_table(made, tmp_path / "index.parquet")
    if record == '{"source": []}':
        with pytest.warns(IncompleteTableWarning):
            read_index(tmp_path / "index.parquet")
    else:
        refused(tmp_path / "index.parquet", "cannot be read: ")


@pytest.mark.slow
def test_rows_that_were_cut_or_zeroed_are_refused(table, tmp_path):
    path = tmp_path / "index.csv"
    lines = table.to_csv(index=False).splitlines(keepends=True)
    text = "".join(lines)

    def damaged(text: str, sentence: str) -> None:
        path.write_text(text)
        refused(path, sentence)

    for cut in (1, 4, 60):
        damaged(text[:-cut], "its last line has no end")
    # The end of a number is missing, and then whole fields.
    damaged("".join([*lines[:-1], lines[-1][:60] + "\n"]), r"its row 15625 has \d+ fields, not 25 as its header")
    damaged("".join([*lines[:9], lines[9].replace("\n", ",1\n"), *lines[10:]]), "its row 9 has 26 fields, not 25")
    damaged(text[:500_000] + "\0" * 4096 + text[504_096:], "it has zero bytes where text belongs")
    path.write_bytes(zipped(text.encode(), ("one.csv", "two.csv")))
    refused(path, "it is a zip archive of 2 files, not of one table")

    def changed(sentence: str, **columns: object) -> None:
        other = table.copy()
        for name, (row, value) in columns.items():
            other[name] = other[name].astype(object)
            other.loc[row, name] = value
        other.infer_objects().to_csv(path, index=False)
        refused(path, sentence)

    changed(r"has 101 for cifar10_test of the cell \|.*; accuracies are in %, from 0 to 100", cifar10_test=(7, 101))
    changed("has -1 for cifar100_valid_e12 of the cell", cifar100_valid_e12=(7, -1))
    changed("has inf for cifar10_test of the cell", cifar10_test=(7, np.inf))
    changed(
        "has zeros for all accuracies in 4 of its rows: it is damaged",
        **{name: (slice(20, 23), 0.0) for name in table.columns if is_accuracy(name.removesuffix("_e12"))},
    )
    changed(r"row 1: 'nothing' is not the text of a genotype of any space", arch=(0, "nothing"))
    changed(r"row 101: '\|nor_conv_3x3~0\|\+\|no' is not a cell of nas-bench-201", arch=(100, "|nor_conv_3x3~0|+|no"))
    changed(r"row 101: 'avg_pool_5x5' is no operator", arch=(100, table["arch"][3].replace("3x3", "5x5")))
    changed("lists the cell 5 twice", index=(6, 5))
    changed("lists the cell .* twice", arch=(6, table["arch"][5]))
    # Of the same cell, written differently.
    changed("lists the cell .* twice", arch=(6, f" {table['arch'][5]} "))
    table.iloc[:0].to_csv(path, index=False)
    refused(path, "has no rows")


def test_fewer_cells_than_the_space_has_are_warned_of(table, tmp_path):
    path = tmp_path / "index.csv"
    table.iloc[:15_000].to_csv(path, index=False)
    with pytest.warns(IncompleteTableWarning, match=r"has 15,000 of the 15,625 cells of nas-bench-201\.$"):
        assert len(read_index(path)) == 15_000


def test_accuracies_that_look_like_shares_are_warned_of(table, tmp_path):
    path = tmp_path / "index.csv"
    shares = [name for name in table.columns if name.startswith("cifar10_")]
    (table.assign(**{name: table[name] / 100 for name in shares})).to_csv(path, index=False)
    with pytest.warns(SharesWarning, match=r"has at most 0\.9\d* for cifar10_test, which counts as per cent") as said:
        read_index(path)
    assert all("cifar10_" in str(warning.message) for warning in said)


# --- comparison


def test_a_comparison_says_where_tables_differ(table, tmp_path, capsys):
    assert compare(table, table).agree
    other = table.sample(frac=1, random_state=0).iloc[:10_000].reset_index(drop=True)
    other["cifar10_test"] += np.where(other.index < 3, -0.5, 0.0)
    other["cifar100_test"] += 1e-5  # rounding
    other.loc[17, "imagenet16_test"] = np.nan
    other["index"] = range(10_000)
    found = compare(other, table)
    assert found.cells == (10_000, 15_625, 10_000)
    assert 9_990 < found.renumbered <= 10_000
    columns = {column.column: column for column in found.columns}
    assert set(columns) == set(table.columns) - {"arch", "index"}
    assert columns["cifar10_test"][1:4] == (10_000, 3, pytest.approx(0.5))
    assert columns["cifar10_test"].arch in set(other["arch"][:3])
    assert columns["cifar100_test"][1:4] == (10_000, 0, pytest.approx(1e-5, rel=0.01))
    assert columns["imagenet16_test"].cells == 9_999
    assert not found.agree
    assert re.search(r"^cifar10_test +10,000 +0\.5 +3  \|", describe_comparison(found), re.MULTILINE)
    table.to_csv(tmp_path / "same.csv", index=False)
    assert main(["benchmark", "compare", str(tmp_path / "same.csv")]) == 0
    assert capsys.readouterr().out.endswith("they agree in all that both have\n")
    darts_table(tmp_path / "darts.csv")
    assert main(["benchmark", "compare", str(tmp_path / "darts.csv")]) == 2
    assert capsys.readouterr().err == "tenas: The two tables have no cell in common: they are of different spaces.\n"


# --- tables of another space


def darts_cells(count: int) -> list[str]:
    """Texts of cells of DARTS, drawn by a seed."""
    draw, space, texts = random.Random(1), get_space("darts"), []
    for _ in range(count):
        cells = []
        for _ in space.cell_types:
            pairs = []
            for target in space.output:
                pairs += [(draw.choice(space.operators[1:]), source) for source in sorted(draw.sample(range(target), 2))]
            cells.append(pairs)
        texts.append(f"Genotype(normal={cells[0]}, normal_concat=range(2, 6), reduce={cells[1]}, reduce_concat=range(2, 6))")
    return texts


def darts_table(path: Path) -> pd.DataFrame:
    """Seven cells, one of them with another author's white space."""
    texts = darts_cells(7)
    texts[2] = texts[2].replace("), (", "),  (").replace("'", '"')
    made = pd.DataFrame(
        {
            "arch": texts,
            "cifar10_test": [96.0, 97.0, 95.5, 97.25, None, 96.5, 96.75],
            "final_accuracy": range(90, 97),
            "accuracy_rank": range(7),
            "params_cifar10": [3.3e6, 3.1e6, 3.2e6, 2.9e6, 3.4e6, 3.6e6, None],
            "flops_imagenet": [530.5, 540.0, 520.0, 510.0, 500.0, 560.0, 570.0],
            "flops_note": list("abcdefg"),
        }
    )
    made.to_csv(path, index=False)
    return made


def test_a_table_of_darts_is_looked_up(tmp_path, capsys):
    index = tmp_path / "darts.csv"
    made = darts_table(index)
    table = read_index(index)
    assert accuracies_of(table) == ["cifar10_test", "final_accuracy"]
    for cell in (made["arch"][2], load_genotype(made["arch"][2]), "2"):
        found = look_up(cell, index)
        assert found["row"] == 2
        assert found["accuracies"]["cifar10_test"]["rank"] == 6
        assert found["accuracies"]["final_accuracy"]["accuracy"] == 92
        assert found["costs"] == {"params_cifar10": 3_200_000, "flops_imagenet": 520}
        # The space has no canonical form: that no cell is the same is not known.
        assert found["isomorphic"] is None
    assert isomorphic(load_genotype(made["arch"][0]), table["arch"]) is None
    assert query(table, 6)["costs"] == {"params_cifar10": None, "flops_imagenet": 570}
    assert query(table, 0)["costs"]["flops_imagenet"] == 530.5
    assert query(table, 4)["accuracies"]["cifar10_test"] is None
    assert main(["benchmark", "query", made["arch"][3], "--index", str(index)]) == 0
    said = capsys.readouterr().out
    assert "cell 3 of 7; isomorphic to it: not known" in said
    assert re.search(r"^cifar10_test +97\.25 +1 +83\.33 +0\.00 +-$", said, re.MULTILINE)
    with pytest.raises(TenasError, match=r"no cell .*: is it of another space"):
        query(table, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    made.assign(arch=[*made["arch"][:6], made["arch"][0]]).to_csv(index, index=False)
    refused(index, "lists the cell .* twice")
    with pytest.raises(TenasError, match=r"row 1: \"Genotype\(.*is not a cell of nas-bench-201"):
        read_index(index, "nas-bench-201")


def test_searches_refuse_a_table_of_darts(tmp_path, capsys):
    darts_table(tmp_path / "darts.csv")
    command = ["benchmark", "search", "--index", str(tmp_path / "darts.csv"), "--out", str(tmp_path / "out.csv")]
    assert main(command) == 2
    expected = "tenas: Searches on a table step through the cells of nas-bench-201 alone; this table is of darts.\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out.csv").exists()


# --- a column


@pytest.mark.data
def test_a_column_of_hardware_is_read_by_text_and_by_number(tmp_path, table):
    hardware = SHARED / "nb201_hardware_cifar10.csv.gz"
    given = pd.read_csv(hardware)
    numbered = tmp_path / "numbered.parquet"
    given.drop(columns="arch").sample(frac=1, random_state=0).to_parquet(numbered)
    for name in ("raspi4_latency_ms", "edgetpu_latency_ms"):
        found = read_column(hardware, name)
        assert found == read_column(numbered, name)
        runnable = given[given[name] != -1]
        assert found == dict(zip(runnable["arch"], runnable[name], strict=True))
    assert len(found) == 15_625 - 4_699
    assert read_column("builtin", "flops_cifar10")[table["arch"][1462]] == 220_119_690


def test_what_is_no_column_gets_a_sentence(tmp_path, table):
    path = tmp_path / "costs.csv"
    few = pd.DataFrame({"index": [857, 3, 0], "score": [-1.0, -2.5, 4.0], "latency": [-1.0, 2.0, None], "note": list("abc")})
    few.to_csv(path, index=False)
    archs = [table["arch"][number] for number in (857, 3, 0)]
    # Where other values are negative, -1 is a value.
    assert read_column(path, "score") == dict(zip(archs, [-1.0, -2.5, 4.0], strict=True))
    assert read_column(path, "latency") == {archs[1]: 2.0}

    def refused(sentence: str, column: str = "latency", space: str = "nas-bench-201") -> None:
        with pytest.raises(TenasError, match=sentence):
            read_column(path, column, space)

    refused(r"Unknown column of the table .*costs\.csv 'energy'; known: score, latency\.", "energy")
    refused("something other than numbers in the column 'note'", "note")
    refused(r"does not name its cells: it needs their texts in a column 'arch'\.", space="darts")
    few.assign(index=[857, 3, 15_625]).to_csv(path, index=False)
    refused("has the number 15625, which no cell of nas-bench-201 has")
    few.assign(index=[857, 3, 3]).to_csv(path, index=False)
    refused("lists a cell twice")
    few.drop(columns="index").to_csv(path, index=False)
    refused("texts in a column 'arch' or official numbers in a column 'index'")
    path.unlink()
    refused("There is no table")
