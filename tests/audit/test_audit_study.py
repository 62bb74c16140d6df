"""The audit of a correlation study: cells, scores, records, correlations."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.runs import copied

from tenas.audit import audit
from tenas.cli import main
from tenas.files import read_json, sha256, write_csv, write_json
from tenas.provenance import sealed
from tenas.settings.study import study_settings
from tenas.spaces import get_space

# A table of a few cells is enough here.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
STUDY = Path("study")
SMALL = {"repeats": 2, "batch": 4, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
SETTINGS = {
    "space": "nas-bench-201", "dataset": "digits", "cells": 12, "seed": 3,
    "measures": {"parameters": SMALL | {"repeats": 1}, "snip": SMALL, "naswot": SMALL},
}  # fmt: skip


def write_table(path: Path) -> None:
    """Forty cells with accuracies that follow from their convolutions, and chance."""
    generator, every = np.random.default_rng(0), list(get_space("nas-bench-201").genotypes())
    rows = []
    for number in generator.choice(len(every), 40, replace=False):
        arch = every[number].arch
        rows.append({"index": number, "arch": arch, "cifar10_test": 60 + 4 * arch.count("conv") + generator.normal()})
    write_csv(path, list(rows[0]), rows)


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A folder with a table, prepared images and a finished study in two shards. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    with chdir(folder):
        write_table(Path("table.csv"))
        assert main(["prepare", json.dumps({"source": "digits", "images": 60}), "--out", "data/digits"]) == 0
        own = ["--settings", "study/study.json"]
        assert main(["settings", "study", json.dumps(study_settings(SETTINGS, "study")), "--out", "study/study.json"]) == 0
        assert main(["study", "cells", *own, "--index", "table.csv", "--out", "study/cells.csv"]) == 0
        files = [*own, "--images", "data/digits/images.npy", "--cells", "study/cells.csv", "--device", "cpu"]
        for shard in (1, 2):
            assert main(["study", "score", *files, "--shard", f"{shard}/2", "--out", f"study/scores/{shard}.csv"]) == 0
        command = ["study", "correlate", *own, "--cells", "study/cells.csv", "--index", "table.csv", "--out", "study"]
        assert main([*command, "--scores", "study/scores/1.csv", "study/scores/2.csv"]) == 0
    return folder


@pytest.fixture
def copy(studied, tmp_path, monkeypatch) -> Path:
    """A copy of the finished study, as the working directory."""
    monkeypatch.chdir(copied(studied, tmp_path))
    return tmp_path


def faults(**given: object) -> dict[str, list[str]]:
    return {path.as_posix(): found for path, found in audit(STUDY, **given).faults.items()}


def test_a_finished_study_is_clean(copy, capsys):
    assert main(["audit", "study"]) == 0
    printed = capsys.readouterr().out
    # Settings, cells, scores and records; correlations with their record, two figures; images, labels, card; the table.
    assert printed.splitlines()[-1] == f"{2 + 4 + 2 + 2 + 3 + 1} files, all as recorded"
    assert "note" not in printed
    assert "12 cells; measurements in study/scores: 1.csv (30), 2.csv (30)" in printed


FILES = [
    STUDY / name for name in ("study.json", "cells.csv", "scores/1.csv", "scores/2.json", "correlations.csv", "correlations.json",
                              "forest.svg", "scatter.svg")
]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_turned_digit_is_found_and_named(copy, path):
    content = path.read_bytes()
    digits = [place.start() for place in re.finditer(rb"[0-9]", content)]
    for place in {digits[len(digits) * part // 6] for part in range(6)} | {digits[-1]}:
        other = b"%d" % ((content[place] - ord("0") + 1) % 10)
        path.write_bytes(content[:place] + other + content[place + 1 :])
        assert str(path) in faults(), content[max(0, place - 60) : place + 20]
    path.write_bytes(content)
    assert faults() == {}


def test_cells_are_drawn_again_where_the_table_is(copy):
    """A sample with another cell, from which everything after it has been made: only the table can tell."""
    cells = STUDY / "cells.csv"
    lines = cells.read_text().splitlines()
    every = Path("table.csv").read_text().splitlines()[1:]
    other = next(line for line in every if line.split(",")[1] not in cells.read_text())
    lines[1] = ",".join(other.split(",")[:2])
    cells.write_text("\n".join(lines) + "\n")
    for name in ("correlations.csv", "correlations.json", "forest.svg", "scatter.svg"):
        (STUDY / name).unlink()
    shutil.rmtree(STUDY / "scores")
    files = ["--settings", "study/study.json", "--images", "data/digits/images.npy", "--cells", "study/cells.csv"]
    assert main(["study", "score", *files, "--device", "cpu", "--out", "study/scores/1.csv"]) == 0
    assert faults() == {}
    assert faults(table="table.csv") == {str(cells): ["does not have the cells that the seed leads to"]}


def test_a_table_that_is_elsewhere_or_another(copy):
    Path("table.csv").rename("moved.csv")
    note = "The table of the study is not here (--table gives it): its cells and accuracies were taken as they are."
    found = audit(STUDY)
    assert (found.faults, note in found.notes) == ({}, True)
    found = audit(STUDY, table="moved.csv")
    assert (found.faults, note in found.notes) == ({}, False)
    with Path("moved.csv").open("a") as table:
        table.write("1,another,50\n")
    assert note in audit(STUDY, table="moved.csv").notes


def test_correlations_are_computed_again(copy):
    """Edited and sealed again: they are not those of the scores."""
    path, record_file = STUDY / "correlations.csv", STUDY / "correlations.json"
    text = path.read_text()
    kendall = text.splitlines()[2].split(",")[4]
    path.write_text(text.replace(f",{kendall},", ",0.987,", 1))
    record = read_json(record_file, "record")
    del record["record_sha256"]
    write_json(record_file, sealed(record | {"files": record["files"] | {"correlations.csv": sha256(path)}}))
    (fault,) = faults()[str(path)]
    assert re.fullmatch(rf"has 0\.987 for kendall in line 3, where its scores lead to {re.escape(kendall)}", fault)


def test_a_study_without_settings_is_a_sentence(copy, capsys):
    write_json(STUDY / "study.json", {"space": "nas-bench-201"})
    assert main(["audit", "study"]) == 2
    error = capsys.readouterr().err
    assert "study/study.json is no study's settings: study/study.json: the key 'dataset' is missing in the top level." in error


@pytest.mark.slow
def test_a_reader_who_goes_away_is_no_fault(copy):
    """As ``| true`` and ``| head`` do: no traceback, and the exit status is that of the audit."""

    def audited() -> tuple[int, str]:
        command = [sys.executable, "-m", "tenas.cli", "audit", "study"]
        read, write = os.pipe()
        os.close(read)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with os.fdopen(write, "w") as gone:
            done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, env=environment)
        return done.returncode, done.stderr

    assert audited() == (0, "")
    (STUDY / "forest.svg").write_text("another")
    status, error = audited()
    assert status == 2
    assert error.startswith("tenas: Not everything is as it was recorded:\n  study/forest.svg ")
    assert "Error" not in error
