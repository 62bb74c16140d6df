"""The audit of a search that draws cells, measures a shortlist again and trains the finalists, within a limit."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import copied

from tenas.audit import audit
from tenas.cli import main
from tenas.files import read_json, sha256, write_json
from tenas.provenance import sealed
from tenas.settings.search import search_settings
from tenas.spaces import get_space
from tenas.stages.score import score
from tenas.stages.search import search_seed
from tenas.stages.shortlist import shortlist

# A table of a few cells is enough here.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
RUN, SEED = Path("found"), Path("found/seed0")
SMALL = {"repeats": 2, "batch": 8, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
# Of SNIP, labels are needed.
PRESET = {
    "measures": {"naswot": SMALL, "snip": SMALL, "parameters": {**SMALL, "repeats": 1}},
    "rounds": [
        {"kind": "cells", "sample": 20, "keep": 5, "each": 1},
        {"kind": "cells", "keep": 3, "measures": {"naswot": {"repeats": 3}, "snip": {}}},
        {"kind": "training", "training": {"epochs": 1, "channels": 2, "cells": 1, "batch": 128}},
    ],
}
LIMITS = {"parameters": "60%"}


def settings(preset: dict = PRESET, **given: object) -> dict:
    Path("tiny.yaml").write_text(yaml.safe_dump(preset))
    return search_settings("nas-bench-201", "tiny.yaml", **given)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with prepared images and a finished search of one seed. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    with chdir(folder):
        assert main(["prepare", json.dumps({"source": "digits", "images": 200}), "--out", "data/digits"]) == 0
        search_seed(settings(limits=LIMITS), Path("data/digits"), 0, RUN, device="cpu")
    return folder


@pytest.fixture
def copy(searched, tmp_path, monkeypatch) -> Path:
    """A copy of the finished search, as the working directory."""
    monkeypatch.chdir(copied(searched, tmp_path))
    return tmp_path


def faults(**given: object) -> dict[str, list[str]]:
    return {path.as_posix(): found for path, found in audit(RUN, **given).faults.items()}


def clean(run: Path = RUN, **given: object) -> list[str]:
    """The notes of an audit that finds nothing."""
    found = audit(run, **given)
    assert found.faults == {}
    return found.notes


def test_a_finished_funnel_is_clean(copy):
    found = audit(RUN)
    assert (found.faults, found.notes) == ({}, [])
    # Settings, limits, first mask; two rounds of sample, scores, record, ranking, shortlist; three trainings of metrics,
    # history and checkpoint, ranking, finalists; genotype, drawing; images, labels, card.
    assert found.files == 3 + 2 * 5 + 3 * 3 + 2 + 2 + 3
    assert found.trail[2].startswith("limits found/limits.json: at most ")
    assert f"  genotype {read_json(SEED / 'genotype.json', 'genotype')['arch']}" in found.trail


def test_the_trail_leads_to_the_rows_of_every_cell_that_was_kept(copy):
    trail = "\n".join(audit(RUN).trail)
    kept = re.findall(r"^    keeps (\S+): place (\d+), share \S+: naswot (\S+) .*; rows 1.csv:(\d+)-(\d+)$", trail, re.MULTILINE)
    assert len(kept) == 5 + 3
    for number, (arch, place, value, first, last) in enumerate(kept):
        folder, repeats = (SEED / "round1", 2 + 2 + 1) if number < 5 else (SEED / "round2", 3 + 2)
        rows = [line.split(",") for line in (folder / "scores/1.csv").read_text().splitlines()[int(first) - 1 : int(last)]]
        assert len(rows) == repeats
        assert {row[1] for row in rows} == {arch}
        values = [float(row[4]) for row in rows if row[2] == "naswot"]
        assert float(value) == pytest.approx(sum(values) / len(values), rel=1e-3)
        listed = read_json(folder / "shortlist.json", "shortlist")["cells"]
        assert listed[number % 5]["arch"] == arch
        assert int(place) == number % 5 + 1 or number >= 5
    (best,) = re.findall(r"^    keeps (\S+): (\S+) % in validation in epoch 1; training (\d)$", trail, re.MULTILINE)
    metrics = read_json(SEED / f"round3/trainings/{best[2]}/metrics.json", "metrics")
    assert metrics["arch"] == best[0]
    assert metrics["valid_accuracy"] == pytest.approx(float(best[1]), abs=0.005)


FILES = [
    RUN / "search.json", RUN / "limits.json", SEED / "round0/mask.json",
    *(SEED / f"round{r}" / name for r in (1, 2)
      for name in ("sample.csv", "scores/1.csv", "scores/1.json", "cells.csv", "shortlist.json")),
    SEED / "round3/trainings/1/metrics.json", SEED / "round3/trainings/2/history.csv", SEED / "round3/trainings/3/metrics.json",
    SEED / "round3/trainings.csv", SEED / "round3/finalists.json", SEED / "genotype.json", "data/digits/labels.npy",
    "data/digits/card.json",
]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=str)
@pytest.mark.slow
def test_a_turned_digit_is_found_and_named(copy, path):
    """Wherever in the file it is; but the digest of the code in a decision, which another version would have changed too."""
    path = Path(path)
    content = path.read_bytes()
    code = re.search(rb'"code_sha256": "\w+"', content) if path.parent.name != "scores" else None
    digits = [
        place.start() for place in re.finditer(rb"[0-9]", content) if not code or not code.start() <= place.start() < code.end()
    ]
    for place in {digits[len(digits) * part // 5] for part in range(5)} | {digits[-1]}:
        other = b"%d" % ((content[place] - ord("0") + 1) % 10)
        path.write_bytes(content[:place] + other + content[place + 1 :])
        assert str(path) in faults(), content[max(0, place - 60) : place + 20]
    path.write_bytes(content)
    assert clean() == []


def test_a_list_changed_by_hand_is_found_where_it_is(copy):
    """A list that puts the second cell first, laid out as ever, and the genotype that would follow from it."""
    path, genotype = SEED / "round2/shortlist.json", SEED / "genotype.json"
    value = read_json(path, "shortlist")
    value["cells"][:2] = value["cells"][1::-1]
    write_json(path, value)
    found = faults()
    assert "is not the shortlist that its ranking leads to" in found[str(path)]
    # The trainings were of the other order.
    assert any("is not the file whose SHA-256 is recorded" in what for what in found[str(path)])
    shutil.copy(copy / "tiny.yaml", "again.yaml")
    other = next(cell["arch"] for cell in value["cells"] if cell["arch"] != read_json(genotype, "genotype")["arch"])
    made_by = read_json(genotype, "genotype")["made_by"]
    write_json(genotype, get_space("nas-bench-201").parse(other).to_json() | {"made_by": made_by})
    assert faults()[str(genotype)] == ["is not the genotype that the last round leaves"]


def test_a_sample_of_another_seed_is_found(copy):
    """Whole files of another search, each as it was recorded."""
    shutil.copytree(SEED, RUN / "seed1")
    found = faults()
    assert found[f"{RUN}/seed1/round1/sample.csv"] == [
        "does not have the cells that its seed, its limits and what was left before lead to"
    ]
    assert found[f"{RUN}/seed1/round1/scores/1.json"] == ["has 0 for 'seed', where 1 belongs"]
    assert found[f"{RUN}/seed1/round3/trainings/2/metrics.json"] == ["has 0 for 'seed', where 1 belongs"]
    assert not any(path.startswith(f"{RUN}/seed0/") for path in found)


def test_what_a_later_round_has_is_lost(copy):
    (SEED / "round2/sample.csv").unlink()
    (SEED / "round3/trainings/2/metrics.json").unlink()
    found = faults()
    assert found[str(SEED / "round2/sample.csv")] == ["cannot be read (No such file or directory)"]
    assert found[str(SEED / "round3/trainings/2/metrics.json")][0] == "cannot be read (No such file or directory)"
    assert not any("round1" in path for path in found)


@pytest.mark.long
def test_trials_with_draws_of_their_own_are_followed_too(copy):
    """A search that prunes and has twice the measurements; the trail leads to the whole network of each trial."""
    small = {"repeats": 2, "batch": 8, "channels": 1, "cells": 1}
    crops = {"repeats": 2, "count": 90}
    changes = {"exclude": ["none", "avg_pool_3x3"], "images": "own", "own_weights": ["linear_regions"]}
    changes["measures"] = {"ntk_condition_number": small, "linear_regions": crops}
    resolved = search_settings("nas-bench-201", "released", changes)
    for run in (Path("own"), Path("again")):
        search_seed(resolved, Path("data/digits"), 0, run, device="cpu")
    assert clean(Path("own")) == []
    for name in ("round1/ranking.csv", "round2/scores/1.csv", "round2/mask.json"):
        assert (Path("own/seed0") / name).read_bytes() == (Path("again/seed0") / name).read_bytes()
    rows = (Path("own/seed0/round1/scores/1.csv")).read_text().splitlines()
    assert len(rows) == 1 + 2 * 18 * 4
    for trial, first, last in re.findall(
        r"rows 1.csv:(\d+)-\d+, whole 1.csv:(\d+)-(\d+)$", "\n".join(audit("own").trail), re.MULTILINE
    )[:6]:
        number = int(rows[int(trial) - 1].split(",")[1])
        assert {row.split(",")[1] for row in rows[int(first) - 1 : int(last)]} == {str(18 + number)}
    # Said to be shared, these measurements are those of another search.
    for entry in resolved["rounds"]:
        entry["images"], entry["own_weights"] = "shared", []
    write_json("own/search.json", resolved)
    assert audit("own").faults


def odd_values(value: object) -> list[object]:
    return [odd for odd in (None, 7, "x", [], {}, [[1]], True) if odd != value]


@pytest.mark.parametrize(
    "path",
    [RUN / "search.json", RUN / "limits.json", SEED / "round0/mask.json", SEED / "round1/scores/1.json",
     SEED / "round1/shortlist.json", SEED / "round3/trainings/1/metrics.json", SEED / "round3/finalists.json",
     SEED / "genotype.json", Path("data/digits/card.json")],
    ids=str,
)  # fmt: skip
@pytest.mark.slow
def test_values_of_another_type_are_faults_and_no_traceback(copy, path):
    value = read_json(path, "file")
    for number, key in enumerate(value):
        odd = odd_values(value[key])[number % 6]
        write_json(path, value | {key: odd})
        assert str(path) in faults(), (key, odd)
        if isinstance(value[key], dict) and value[key]:
            inner = list(value[key])[number % len(value[key])]
            odd = odd_values(value[key][inner])[(number + 3) % 6]
            write_json(path, value | {key: value[key] | {inner: odd}})
            assert str(path) in faults(), (key, inner, odd)


@pytest.mark.slow
def test_a_search_that_was_killed_and_resumed_is_clean(copy):
    """SIGKILL in the middle of the first round; the same command goes on."""
    (copy / "again.yaml").write_text(yaml.safe_dump(PRESET | {"rounds": PRESET["rounds"][:2]}))
    arguments = ["search", "--preset", "again.yaml", "--data", "data/digits", "--device", "cpu", "--out", "again"]
    command = [sys.executable, "-m", "tenas.cli", *arguments]
    partial, started = Path("again/seed0/round1/scores/.1.partial"), time.monotonic()
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as process:
        while not partial.exists() or len(partial.read_bytes().splitlines()) < 12:
            assert time.monotonic() - started < 120
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not Path("again/seed0/round1/scores/1.csv").exists()
    assert main(arguments) == 0
    assert read_json("again/seed0/round1/scores/1.json", "record")["resumed"] >= 11
    assert clean(Path("again")) == []


def measure_again(shards: int) -> None:
    """Measure round 1 in so many shards, and rank it again; the ranking stays as it is."""
    here = SEED / "round1"
    shutil.rmtree(here / "scores")
    scores = [here / f"scores/{shard}.csv" for shard in range(1, shards + 1)]
    for shard, path in enumerate(scores, start=1):
        score(
            settings=RUN / "search.json", images=Path("data/digits/images.npy"), subjects=here / "sample.csv", round=1, seed=0,
            shard=(shard, shards), device="cpu", out=path,
        )  # fmt: skip
    before = [(here / name).read_bytes() for name in ("cells.csv", "shortlist.json")]
    shortlist(
        settings=RUN / "search.json", cells=here / "sample.csv", round=1, scores=scores, ranking=here / "cells.csv",
        out=here / "shortlist.json",
    )  # fmt: skip
    assert before == [(here / name).read_bytes() for name in ("cells.csv", "shortlist.json")]


@pytest.mark.slow
def test_a_round_in_shards_is_clean_and_its_rows_are_found(copy):
    measure_again(3)
    assert clean() == []
    trail = "\n".join(audit(RUN).trail)
    assert "measurements in found/seed0/round1/scores: 1.csv (35), 2.csv (35), 3.csv (30)" in trail
    for arch, name, first, last in re.findall(r"keeps (\S+): place .*; rows (\d\.csv):(\d+)-(\d+)$", trail, re.MULTILINE)[:5]:
        rows = (SEED / "round1/scores" / name).read_text().splitlines()[int(first) - 1 : int(last)]
        assert {row.split(",")[1] for row in rows} == {arch}
    (SEED / "round1/scores/2.csv").rename(SEED / "round1/scores/4.csv")
    assert "cannot be read" in faults()[str(SEED / "round1/scores/2.csv")][0]


def test_another_processor_is_a_note(copy):
    """Half of the scores of another machine, and last digits of a ranking as that machine rounds."""
    path = SEED / "round2/scores/1.json"
    record = read_json(path, "record")
    assert record["machine"]["processor"]
    del record["record_sha256"]
    write_json(path, sealed(record | {"machine": record["machine"] | {"processor": "Another 3000"}}))
    (note,) = clean()
    assert note.startswith("The scores are of 2 kinds of processor, whose last bits may differ: ")
    assert re.search(r"Another 3000(, \w+)? \(1\)", note)
    ranking, decision = SEED / "round2/cells.csv", SEED / "round2/shortlist.json"
    rows = list(csv.reader(ranking.read_text().splitlines()))
    column = rows[0].index("naswot_se")
    text = ranking.read_text().replace(rows[1][column], repr(float(rows[1][column]) * (1 + 1e-14)))
    assert text != ranking.read_text()
    ranking.write_text(text)
    # By itself it is a change by hand.
    assert str(ranking) in faults()
    value = read_json(decision, "shortlist")
    value["made_by"]["inputs"]["round2/cells.csv"] = sha256(ranking)
    write_json(decision, value)
    finalists = SEED / "round3/finalists.json"
    retold = read_json(finalists, "finalists")
    retold["made_by"]["inputs"]["round2/shortlist.json"] = sha256(decision)
    write_json(finalists, retold)
    genotype = read_json(SEED / "genotype.json", "genotype")
    genotype["made_by"]["inputs"]["round3/finalists.json"] = sha256(finalists)
    write_json(SEED / "genotype.json", genotype)
    shutil.rmtree(SEED / "round3/trainings")
    notes = audit(RUN).notes
    assert f"{ranking} has other last digits than its measurements give here, as another processor rounds." in notes
    assert str(ranking) not in faults()


def write_table(path: Path, archs: list[str]) -> None:
    """A table with accuracies after 12 epochs: higher for cells of more convolutions."""
    lines = ["arch,cifar10_test,short"]
    lines += [f"{arch},{50 + arch.count('conv')}.25,{40 + arch.count('conv') + i / 100}" for i, arch in enumerate(archs)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def looked_up(copy) -> Path:
    """A search over a list of cells of one's own, whose short trainings are looked up."""
    archs = [genotype.arch for place, genotype in enumerate(get_space("nas-bench-201").genotypes()) if place % 1700 == 11]
    Path("mine.csv").write_text("arch\n" + "\n".join(archs) + "\n")
    write_table(Path("table.csv"), archs)
    rounds = [{"kind": "cells", "sample": "mine.csv", "keep": 4}, {"kind": "training", "keep": 1}]
    shutil.rmtree(RUN)
    given = settings({"measures": {"naswot": SMALL}, "rounds": rounds}, trainings="table:short")
    search_seed(given, Path("data/digits"), 0, RUN, device="cpu", table=Path("table.csv"))
    return copy


def test_trainings_that_were_looked_up_are_looked_up_again(looked_up):
    note = "The table that round 2 looks 'short' up in is not here (--table gives it): its figures were taken as they are."
    assert clean() == [note]
    assert clean(table="table.csv") == []
    # Where a look-up of the genotype says which table there is, it is found.
    lookup = ["benchmark", "query", str(SEED / "genotype.json"), "--index", "table.csv", "--out", str(SEED / "benchmark.json")]
    assert main(lookup) == 0
    assert clean() == []
    path = SEED / "benchmark.json"
    text = path.read_text()
    path.write_text(
        text.replace('"rank": 1', '"rank": 2', 1) if '"rank": 1' in text else text.replace('"rank": ', '"rank": 1', 1)
    )
    assert faults()[str(path)] == [
        "is not the record that was written: its own hash differs", "has something else under 'accuracies' than its table"
    ]  # fmt: skip
    path.unlink()
    ranking = SEED / "round2/trainings.csv"
    ranking.write_text(ranking.read_text().replace("40.", "49.", 1).replace("41.", "49.", 1).replace("42.", "49.", 1))
    assert "is not the ranking that its trainings lead to" in faults(table="table.csv")[str(ranking)]
    with Path("table.csv").open("a") as table:
        table.write("another,50,50\n")
    assert note in audit(RUN, table="table.csv").notes


def test_a_list_of_cells_that_is_gone_is_a_note(looked_up):
    Path("mine.csv").unlink()
    notes = clean(table="table.csv")
    assert notes == ["mine.csv, the list that found/seed0/round1/sample.csv was made from, is not here: it was not checked."]


@pytest.mark.long
def test_limits_by_a_table_are_looked_up_again(copy):
    archs = [genotype.arch for genotype in get_space("nas-bench-201").genotypes()]
    lines = [f"{arch},50,{1 + place % 97}" for place, arch in enumerate(archs)]
    Path("latency.csv").write_text("arch,cifar10_test,ms\n" + "\n".join(lines) + "\n")
    shutil.rmtree(RUN)
    limits = {"latency": {"table": "latency.csv", "column": "ms", "most": "40%"}}
    preset = {"measures": {"naswot": SMALL}, "rounds": [{"kind": "cells", "sample": 6, "keep": 1}]}
    search_seed(settings(preset, limits=limits), Path("data/digits"), 0, RUN, device="cpu")
    assert clean() == []
    assert "limits found/limits.json: at most 38.8 of ms" in audit(RUN).trail
    # Edited and sealed again: only the table can tell.
    path = RUN / "limits.json"
    value = read_json(path, "limits")
    del value["record_sha256"]
    value["latency"]["values"][archs[5]] += 0.5
    write_json(path, sealed(value))
    assert faults()[str(path)] == ["has other numbers under latency than follow from its settings, costs and table"]
    Path("latency.csv").unlink()
    assert clean() == ["The table latency.csv of the latency limit is not here: its figures were taken as they are."]


def test_what_the_workflow_makes_is_clean(funnel, monkeypatch):
    """A funnel of every kind of round in shards, with a study, as Snakemake makes them."""
    monkeypatch.chdir(funnel)
    for folder in ("results/funnel", "results/study"):
        found = audit(folder)
        assert (found.faults, found.notes) == ({}, []), folder
    trail = "\n".join(audit("results/funnel").trail)
    for kind in (
        " 30 trials; ",
        " 12 cells, of which it keeps 4; ",
        " 4 cells, of which it keeps 3; ",
        " 3 trainings, of which it keeps 1; ",
    ):
        assert kind in trail


def test_settings_of_an_earlier_version_are_a_sentence(copy, capsys):
    write_json(RUN / "search.json", {"space": "nas-bench-201", "preset": "pruning", "exclude": [], "prune": 1, "measures": {}})
    for command in ("audit", "show"):
        assert main([command, str(RUN)]) == 2
        assert capsys.readouterr().err == (
            "tenas: The settings found/search.json are of an earlier version, whose searches had no list of rounds: read the run "
            "with the version that made it, or search again.\n"
        )
