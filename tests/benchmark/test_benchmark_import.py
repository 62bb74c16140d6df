"""Import of the official files: miniature archives in both forms, read by the package nas-bench-201 itself."""

import bz2
import codecs
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from helpers import SHARED
from pyarrow import parquet

from tenas.benchmark import read_index
from tenas.benchmark.archive import PTH_NAME, _PlainUnpickler, import_archive, open_archive
from tenas.cli import main
from tenas.errors import TenasError
from tenas.spaces import get_space

pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
CELLS = [genotype.arch for _, genotype in zip(range(4), get_space("nas-bench-201").genotypes(), strict=False)]
OLD = b"numpy.core.multiarray"
CLASSES = {"cifar10-valid": 10, "cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}


def trial(arch: str, epochs: int, record: dict, seconds: float | None) -> dict:
    """One training as the archives keep it: the state of a ResultsCount, its last epoch's figures being the record's.

    The other epochs' are there in a training that has times, too.
    """
    sets = record["eval_acc"]
    last = epochs - 1
    kept = range(last if seconds is None else 0, epochs)
    times = None if seconds is None else OrderedDict((i, seconds) for i in range(epochs))
    return {
        "name": record["dataset"],
        "net_state_dict": None,
        "train_acc1es": {i: record["train_acc"] if i == last else 1.0 * i for i in kept},
        "train_acc5es": None,
        "train_losses": dict.fromkeys(kept, 1.5),
        "train_times": times,
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": CLASSES[record["dataset"]]},
        "params": record["params_M"],
        "flop": record["flops_M"],
        "seed": str(record["seed"]),
        "epochs": epochs,
        # In the archives, too, a NumPy scalar: a mean.
        "latency": [np.float64(0.0125)],
        "eval_names": list(sets),
        "eval_acc1es": {f"{s}@{i}": sets[s] if i == last else 2.0 * i for s in sets for i in kept},
        "eval_times": {} if seconds is None else {f"{s}@{i}": 0.5 for s in sets for i in kept},
        "eval_losses": {f"{s}@{i}": 2.5 for s in sets for i in kept},
    }


def cell(number: int, arch: str, records: dict[str, list[dict]], seconds: float | None = 2.0) -> dict[str, dict]:
    """{"12": ..., "200": ...}: the states of a cell's ArchResults."""
    states = {}
    for epochs, trials in records.items():
        seeds: dict[str, list[int]] = {}
        for record in trials:
            seeds.setdefault(record["dataset"], []).append(record["seed"])
        states[epochs] = {
            "arch_index": number,
            "arch_str": arch,
            "all_results": {(r["dataset"], r["seed"]): trial(arch, int(epochs), r, seconds) for r in trials},
            "dataset_seed": {name: sorted(found) for name, found in seeds.items()},
            "clear_net_done": True,
        }
    return states


def made_up(number: int) -> dict[str, list[dict]]:
    """Records of one seed a data set, all their accuracies different."""
    found = {}
    for epochs, seed in (("12", 111), ("200", 777)):
        found[epochs] = []
        for place, (name, sets) in enumerate(SETS.items()):
            base = number % 50 + place + int(epochs) / 1000
            accuracies = {s: base + 10 * i for i, s in enumerate(sets, start=1)}
            record = {"dataset": name, "seed": seed, "params_M": 0.1 + number / 1e6, "flops_M": 15.0 + place}
            found[epochs].append(record | {"train_acc": base, "eval_acc": accuracies})
    return found


def save_folder(folder: Path, cells: dict[str, dict[str, dict]], protocol: int = 4) -> Path:
    """The form NATS-tss-v1_0-3ffb9-simple; ``cells``: text -> states."""
    folder.mkdir(parents=True)
    meta = {"meta_archs": list(cells), "total_archs": len(cells), "arch2infos": None, "evaluated_indexes": set()}
    numbered = {f"{i:06d}": OrderedDict(states) for i, states in enumerate(cells.values())}
    for name, value in (numbered | {"meta": meta}).items():
        data = pickle.dumps(value, protocol=protocol)
        # Before protocol 4 names stand in the open: write that of NumPy 1, which the official files have.
        data = data.replace(b"numpy._core.multiarray", OLD) if protocol < 4 else data
        (folder / f"{name}.pickle.pbz2").write_bytes(bz2.compress(data))
    return folder


def save_pth(path: Path, cells: dict[str, dict[str, dict]], zipped: bool = False) -> Path:
    """The form NAS-Bench-201-v1_1-096897.pth. It was written before torch wrote zip files, and by NumPy 1."""
    import torch

    infos = {i: {"less": states["12"], "full": states["200"]} for i, states in enumerate(cells.values())}
    value = {"meta_archs": list(cells), "arch2infos": infos, "evaluated_indexes": set(range(len(cells)))}
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        assert b"numpy._core.multiarray" in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", OLD))
    return path


def small() -> dict[str, dict[str, dict]]:
    return {arch: cell(number, arch, made_up(number)) for number, arch in enumerate(CELLS)}


def imported(source: Path, out: Path) -> pd.DataFrame:
    import_archive(open_archive(source), out)
    return pd.read_parquet(out)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """(the three official records, their miniature archive in both forms, imported)."""
    records = json.loads((SHARED / "nb201_official_records_0_11_284.json").read_text())
    archs = pd.read_csv(SHARED / "nb201.csv.gz", nrows=285)["arch"]
    cells = {}
    for number, arch in enumerate(archs):
        known = records.get(str(number))
        assert known is None or known["arch"] == arch
        cells[arch] = cell(number, arch, known["hp"]) if known else cell(number, arch, made_up(number), seconds=None)
    folder = tmp_path_factory.mktemp("official")
    sources = save_folder(folder / "NATS-tss-v1_0-3ffb9-simple", cells), save_pth(folder / "mini.pth", cells)
    return records, [imported(source, folder / f"{source.suffix}.parquet") for source in sources]


@pytest.mark.data
def test_both_forms_give_the_official_records(official):
    records, tables = official
    pd.testing.assert_frame_equal(*tables)
    table = tables[0]
    assert len(table) == 285
    names = {
        ("cifar10-valid", "x-valid"): "cifar10_valid", ("cifar10-valid", "ori-test"): "cifar10_halftest",
        ("cifar10", "ori-test"): "cifar10_test", ("cifar100", "x-valid"): "cifar100_valid",
        ("cifar100", "x-test"): "cifar100_test", ("cifar100", "ori-test"): "cifar100_valtest",
        ("ImageNet16-120", "x-valid"): "imagenet16_valid", ("ImageNet16-120", "x-test"): "imagenet16_test",
        ("ImageNet16-120", "ori-test"): "imagenet16_valtest",
    }  # fmt: skip
    compared = 0
    for number, known in records.items():
        row = table.iloc[int(number)]
        assert (row["index"], row["arch"]) == (int(number), known["arch"])
        for epochs, trials in known["hp"].items():
            for (trained_on, part), name in names.items():
                seeds = {t["seed"]: t["eval_acc"][part] for t in trials if t["dataset"] == trained_on}
                assert row[f"{name}_e{epochs}"] == fmean(seeds.values())
                for seed, accuracy in seeds.items():
                    assert row[f"{name}_e{epochs}_seed{seed}"] == accuracy
                    compared += 1
            for t in trials:
                short = {"ImageNet16-120": "imagenet16", "cifar10-valid": "cifar10"}.get(t["dataset"], t["dataset"])
                assert row[f"params_{short}"] == t["params_M"] * 1e6
                assert row[f"flops_{short}"] == pytest.approx(t["flops_M"] * 1e6, abs=1e-3)
    # 9 numbers a seed after 200 epochs with three seeds, and after 12 with one, but two of cifar10-valid.
    assert compared == 3 * (9 * 3 + 9 + 2)


@pytest.mark.data
def test_the_import_agrees_with_the_whole_table_in_the_columns_of_both(official, tmp_path):
    _, (table, _) = official
    table.to_parquet(tmp_path / "imported.parquet")
    ours, whole = (read_index(path) for path in (tmp_path / "imported.parquet", SHARED / "nb201.csv.gz"))
    # Training times aren't in the records.
    both = [name for name in whole.columns if name in ours.columns and name not in ("index", "arch") and "seconds" not in name]
    assert len(both) == 8 + 6 + 6
    for number in (0, 11, 284):
        for name in both:
            # The whole table is rounded, in its twelve-epoch columns too.
            assert ours[name][number] == pytest.approx(whole[name][number], abs=1e-5), (number, name)


@pytest.mark.parametrize("form", ["folder", "folder of an older pickle", "pth", "zipped pth"])
def test_every_form_is_read(tmp_path, form):
    if form.startswith("folder"):
        source = save_folder(tmp_path / "archive", small(), protocol=4 if form == "folder" else 2)
    else:
        source = save_pth(tmp_path / "archive.pth", small(), zipped=form.startswith("zipped"))
    table = imported(source, tmp_path / "index.parquet")
    assert list(table["arch"]) == CELLS
    for number in range(len(CELLS)):
        for epochs in (12, 200):
            for place, (train, valid, test) in enumerate(
                [
                    ("halftrain", "valid", "halftest"),
                    ("train", None, "test"),
                    ("train", "valid", "test"),
                    ("train", "valid", "test"),
                ]
            ):
                name = ("cifar10", "cifar10", "cifar100", "imagenet16")[place]
                base = number + place + epochs / 1000
                assert table[f"{name}_{train}_e{epochs}"][number] == base
                if valid is not None:
                    assert table[f"{name}_{valid}_e{epochs}"][number] == base + 10
                assert table[f"{name}_{test}_e{epochs}"][number] == base + (10 if valid is None else 20)
                if place > 1:
                    assert table[f"{name}_valtest_e{epochs}"][number] == base + 30
                assert table[f"{name}_{train}_seconds_e{epochs}"][number] == 2 * epochs
        assert table["params_cifar100"][number] == 100_000 + number
        assert table["flops_imagenet16"][number] == 18_000_000
    assert table["params_cifar10"].dtype == table["index"].astype("int64").dtype
    assert set(read_index(tmp_path / "index.parquet").columns) >= {"cifar10_test", "cifar10_train_seconds", "cifar10_test_e12"}


def test_a_cell_with_fewer_seeds_has_gaps_and_its_own_mean(tmp_path):
    cells = small()
    records = made_up(1)
    (more,) = [r for r in records["200"] if r["dataset"] == "cifar10"]
    records["200"].append({**more, "seed": 888, "eval_acc": {"ori-test": 50.0}})
    # As in the first version of the benchmark: no times.
    cells[CELLS[1]] = cell(1, CELLS[1], records, seconds=None)
    table = imported(save_folder(tmp_path / "archive", cells), tmp_path / "index.parquet")
    assert table["cifar10_test_e200_seed888"].isna().tolist() == [True, False, True, True]
    assert table["cifar10_test_e200"][1] == (more["eval_acc"]["ori-test"] + 50) / 2
    assert table["cifar10_test_e200"][0] == table["cifar10_test_e200_seed777"][0]
    assert table["cifar10_train_seconds_e200"].isna().tolist() == [False, True, False, False]


def test_the_command_records_the_source_and_its_checksum(tmp_path, capsys):
    source = save_folder(tmp_path / "archive", small())
    out = tmp_path / "index.parquet"
    assert main(["benchmark", "import", str(source), "--out", str(out)]) == 0
    said = capsys.readouterr()
    record = json.loads(parquet.read_schema(out).metadata[b"tenas"])
    assert record["source"]["name"] == "archive"
    assert record["source"]["cells"] == 4
    assert f"4 cells in {out}; SHA-256 of the source: {record['source']['sha256']}" in said.out
    assert "import of archive: 4 of 4 cells" in said.err
    # Made-up accuracies, but the same cells: what differs from the built-in table is said.
    assert "compared with the built-in table:\n4 and 15,625 cells, 4 of them in both\n4 cells have other numbers\n" in said.out
    assert re.search(r"^cifar10_test +4 +\d+\.\d+ +4  \|none~0\|", said.out, re.MULTILINE)
    # What `sha256sum *.pickle.pbz2 | sha256sum` says.
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(source.iterdir()))
    assert record["source"]["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "index.parquet"]
    pth = save_pth(tmp_path / "archive.pth", small())
    record = import_archive(open_archive(pth), tmp_path / "other.parquet")
    assert record["source"]["sha256"] == hashlib.sha256(pth.read_bytes()).hexdigest()


IN_A_PROCESS = """
import re, sys
from tenas.benchmark.archive import import_archive, open_archive
import_archive(open_archive(sys.argv[1]), sys.argv[2])
# Not getrusage: its peak has that of the process that started this one.
print("torch" in sys.modules, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.slow
def test_the_folder_is_read_without_torch_in_memory_that_does_not_grow(tmp_path):
    peaks = []
    for count in (20, 100):
        archs = [genotype.arch for _, genotype in zip(range(count), get_space("nas-bench-201").genotypes(), strict=False)]
        source = save_folder(tmp_path / str(count), {arch: cell(i, arch, made_up(i)) for i, arch in enumerate(archs)})
        command = [sys.executable, "-c", IN_A_PROCESS, source, tmp_path / "index.parquet"]
        torch, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert torch == "False"
        peaks.append(float(peak))
    # 80 cells more are 70 MB when they are held.
    assert max(peaks) < 300
    assert peaks[1] - peaks[0] < 20


class Evil:
    """A pickle that leaves a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path):
    folder = save_folder(tmp_path / "archive", small())
    (folder / "000001.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"12": Evil(tmp_path / "ran")})))
    with pytest.raises(TenasError, match=r"000001\.pickle\.pbz2 cannot be read: it names posix\.mkdir, which is no plain data"):
        imported(folder, tmp_path / "index.parquet")
    import torch

    torch.save({"meta_archs": Evil(tmp_path / "ran"), "arch2infos": {}, "evaluated_indexes": []}, tmp_path / "archive.pth")
    with pytest.raises(TenasError, match=r"archive\.pth cannot be read as NAS-Bench-201"):
        open_archive(tmp_path / "archive.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "archive.pth"]


@pytest.mark.parametrize("forced", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "both"])
def test_no_variable_of_the_environment_lets_a_pickle_run_code(tmp_path, monkeypatch, forced):
    import torch

    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        if forced in (name, "both"):
            monkeypatch.setenv(name, "1")
    assert len(imported(save_pth(tmp_path / "good.pth", small()), tmp_path / "index.parquet")) == 4
    for zipped in (True, False):
        value = {"meta_archs": Evil(tmp_path / "ran"), "arch2infos": {}, "evaluated_indexes": []}
        torch.save(value, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(TenasError, match=r"evil\.pth cannot be read as NAS-Bench-201"):
            open_archive(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    assert forced == "both" or os.environ[forced] == "1"


class Named:
    """A pickle that calls a function of NumPy."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


SCALAR = np.float64(0).__reduce__()[0]
OBJECTS = np.dtype("O"), np.dtype([("a", "f8"), ("b", "O")]), np.dtype("S9"), np.dtype("M8[s]"), np.dtype(("f8", 3))


@pytest.mark.parametrize(
    "value",
    [
        *OBJECTS, *(Named(SCALAR, kind, b"\x10" * 24) for kind in OBJECTS), Named(SCALAR, np.dtype("O"), [1]),
        Named(np.dtype, "O", False, True), Named(np.dtype, [("f8", "O")]), Named(np.dtype, 7),
        Named(SCALAR, np.dtype("f8"), b"12"), Named(SCALAR, 3, b"12345678"), np.zeros(3),
        Named(bz2.decompress, b""), Named(codecs.encode, b"", "zlib"),
        Named(codecs.encode, "a", "idna"),
    ],
    ids=range(20),
)  # fmt: skip
@pytest.mark.parametrize("form", ["folder", "pth"])
def test_a_type_that_is_no_plain_number_is_refused_before_it_is_built(tmp_path, value, form):
    """In NumPy's own hands a scalar of objects ends the process."""
    if form == "folder":
        source = save_folder(tmp_path / "archive", small())
        (source / "000001.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"12": value})))
    else:
        import torch

        source = tmp_path / "archive.pth"
        torch.save({"meta_archs": CELLS, "arch2infos": {0: value}, "evaluated_indexes": []}, source)
    with pytest.raises(TenasError, match="cannot be read"):
        imported(source, tmp_path / "index.parquet")
    assert not (tmp_path / "index.parquet").exists()


@pytest.mark.parametrize("kind", ["f8", "f4", "i8", "i4", ">f8", "b1"])
def test_numbers_of_numpy_are_read_as_they_are(kind):
    value = np.dtype(kind).type(1)
    for protocol in (2, 4):
        # One dtype is pickled for all scalars of its type; another order has to be in the bytes.
        pickled = pickle.dumps([Named(SCALAR, np.dtype(kind), np.array(1, kind).tobytes()), value], protocol)
        found = _PlainUnpickler(io.BytesIO(pickled)).load()
        assert found == [1, 1]
        assert {type(number) for number in found} == {type(value)}


def test_a_full_archive_has_a_hint(tmp_path):
    import torch

    for name in ("NATS-tss-v1_0-3ffb9-full", "NATS-sss-v1_0-50262-simple"):
        with pytest.raises(TenasError, match=r"use the one whose name ends in -simple\.$"):
            open_archive(save_folder(tmp_path / name, small()))
    folder = save_folder(tmp_path / "renamed", small())
    (folder / "000000.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"12": {"net_state_dict": {"w": torch.zeros(2)}}})))
    with pytest.raises(TenasError, match=r"it names torch\..*use the one whose name ends in -simple\.$"):
        imported(folder, tmp_path / "index.parquet")
    (tmp_path / "NATS-tss-v1_0-3ffb9-simple.tar").touch()
    with pytest.raises(TenasError, match="is packed: unpack it"):
        open_archive(tmp_path / "NATS-tss-v1_0-3ffb9-simple.tar")


def test_what_is_missing_or_foreign_gets_a_sentence(tmp_path, capsys):
    def refused(source: Path, words: str) -> None:
        out = tmp_path / "out" / "index.parquet"
        assert main(["benchmark", "import", str(source), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert said.splitlines()[-1].startswith("tenas: ")
        assert said.endswith(".\n")
        assert not out.exists()

    refused(tmp_path / "nowhere", "is neither a folder with meta.pickle.pbz2")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is incomplete: it has no meta.pickle.pbz2")
    folder = save_folder(tmp_path / "archive", small())
    path = folder / "000002.pickle.pbz2"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, "000002.pickle.pbz2 cannot be read")
    path.write_bytes(b"no archive at all")
    refused(folder, "000002.pickle.pbz2 cannot be read")
    path.write_bytes(bz2.compress(pickle.dumps([1, 2])))
    refused(folder, "holds something other than a dictionary")
    path.write_bytes(bz2.compress(pickle.dumps({"90": {}})))
    refused(folder, f"The record of the cell 2 in {folder} is faulty: it has no trainings of 12 or 200 epochs.")
    path.write_bytes((folder / "000001.pickle.pbz2").read_bytes())
    refused(folder, f"The record of the cell 2 in {folder} is faulty: it is of the cell 1, {CELLS[1]}.")
    path.unlink()
    refused(folder, "is incomplete: it has no 000002.pickle.pbz2")
    bare = small()
    del bare[CELLS[1]]["200"]["all_results"]["cifar100", 777]
    refused(save_folder(tmp_path / "bare", bare), "The record of the cell 1")
    damaged = small()
    damaged[CELLS[3]]["200"]["all_results"]["cifar100", 777]["eval_acc1es"]["x-test@199"] = float("nan")
    refused(save_folder(tmp_path / "nan", damaged), "The record of the cell 3")
    for key, value in (
        ("flop", float("inf")),
        ("params", 10**400),
        ("train_acc1es", "90"),
    ):
        damaged = small()
        damaged[CELLS[3]]["200"]["all_results"]["cifar100", 777][key] = value
        refused(save_folder(tmp_path / key, damaged), f"The record of the cell 3 in {tmp_path / key} is faulty: ")
    shorter = small()
    shorter[CELLS[3]]["200"]["all_results"]["cifar100", 777]["epochs"] = 12
    refused(save_folder(tmp_path / "short", shorter), "a training of 12 epochs is among those of 200")
    other = {arch.replace("none", "conv"): states for arch, states in small().items()}
    refused(save_folder(tmp_path / "other", other), "'conv' is no operator of nas-bench-201")


def test_a_faulty_pth_gets_a_sentence(tmp_path):
    import torch

    def refused(path: Path, sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            imported(path, tmp_path / "index.parquet")
        assert not (tmp_path / "index.parquet").exists()

    named = save_pth(tmp_path / PTH_NAME, small())
    refused(named, r"is damaged: its MD5 [0-9a-f]{32} doesn't end in 096897, as its name says\.")
    path = tmp_path / "other.pth"
    path.write_bytes(named.read_bytes()[:5000])
    refused(path, "cannot be read as NAS-Bench-201")
    torch.save({"weights": torch.zeros(3)}, path)
    refused(path, r"cannot be read as NAS-Bench-201: Can not find key\[meta_archs\] in the dict\.")
    infos = {0: {"less": small()[CELLS[0]]["12"], "full": small()[CELLS[0]]["200"]}}
    torch.save({"meta_archs": CELLS, "arch2infos": infos, "evaluated_indexes": [0]}, path)
    refused(path, "is incomplete: it has no record of the cell 1")
