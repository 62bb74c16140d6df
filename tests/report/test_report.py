"""The report: the table over a run's seeds, what `tenas show` prints, the figure of the rankings."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tenas.benchmark import look_up
from tenas.benchmark.index import read_index
from tenas.cli import main
from tenas.errors import TenasError
from tenas.figures import save_picture, save_svg, style
from tenas.files import format_csv, sha256, write_csv, write_json
from tenas.provenance import sealed
from tenas.report import accuracies, draw_rounds, show, summarise
from tenas.report.beside import Found, read_found
from tenas.report.cloud import cloud_of, draw_cloud, landmarks, steps
from tenas.report.pictures import Accuracy, draw_seeds
from tenas.report.status import status
from tenas.report.summary import StaleWarning
from tenas.report.warnings import warnings_of_round
from tenas.scoring.subjects import Cell, Cells, plan
from tenas.search.constant import warn_of_nothing
from tenas.search.finalists import rank_finalists
from tenas.search.shortlist import rank_cells, shortlist_json
from tenas.settings import search_settings
from tenas.spaces import get_space, load_genotype
from tenas.stages.plot import plot

# An index of a few cells is enough here.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
ARCHS = [genotype.arch for _, genotype in zip(range(12), get_space("nas-bench-201").genotypes(), strict=False)]
MEASURE = {"naswot": {"repeats": 2, "batch": 4, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}}
TESTS = ["cifar10_test", "cifar100_test", "imagenet16_test"]
DECISIONS = [(1, 0.9), (0, 0.1), (1, 0.6), (0, 0.4)]


def plot_rankings(tables: list[Path], out: Path) -> None:
    with style():
        save_svg(draw_rounds(tables).figure, out)


def save_settings(run: Path, rounds: int) -> dict:
    """The settings of a run with so many rounds of operators of the five of nas-bench-201."""
    prune = {1: 4, 2: 2, 4: 1}[rounds]
    settings = search_settings("nas-bench-201", "pruning", {"exclude": [], "prune": prune})
    assert len(settings["rounds"]) == rounds
    write_json(run / "search.json", settings)
    return settings


def save_ranking_of(folder: Path, decisions: list[tuple[int, float]]) -> None:
    table = [{"trial": i, "pruned": pruned, "pruned_share": share} for i, (pruned, share) in enumerate(decisions)]
    write_csv(folder / "ranking.csv", ["trial", "pruned", "pruned_share"], table)


def save_seed(run: Path, seed: int, *, shards: dict[int, list[float]], accuracy: float | None = None) -> Path:
    """A seed's files as its stages write them: ``shards`` gives for each round the seconds of its shards."""
    folder = run / f"seed{seed}"
    save_settings(run, len(shards))
    write_json(folder / "genotype.json", {"space": "nas-bench-201", "arch": ARCHS[seed]})
    write_json(folder / "benchmark.json", look_up(load_genotype(ARCHS[seed]), None))
    for round, seconds in shards.items():
        for i, wall in enumerate(seconds, start=1):
            record = {"shard": f"{i}/{len(seconds)}", "wall_seconds": wall}
            write_json(folder / f"round{round}" / "scores" / f"{i}.json", record)
        save_ranking_of(folder / f"round{round}", DECISIONS)
    if accuracy is not None:
        metrics = {"arch": ARCHS[seed], "test_accuracy": accuracy, "valid_accuracy": accuracy + 1, "best_epoch": 3}
        write_json(folder / "retrain" / "metrics.json", metrics | {"epochs": 4, "parameters": 12345, "flops": 2_500_000})
    return folder


def test_one_row_per_seed(tmp_path):
    save_seed(tmp_path, 0, shards={1: [1.5, 2.25], 2: [4.0]}, accuracy=96.5)
    save_seed(tmp_path, 2, shards={1: [1.0], 2: [2.0]})
    columns, rows = summarise(tmp_path, [0, 2])
    assert columns == [
        "seed", "arch", "search_seconds", "pruned_share", "parameters", "flops", "best_epoch", "valid_accuracy", "test_accuracy",
        "warnings",
    ]  # fmt: skip
    assert rows == [
        {
            "seed": 0, "arch": ARCHS[0], "search_seconds": 7.75, "pruned_share": 0.75, "parameters": 12345, "flops": 2_500_000,
            "best_epoch": 3, "valid_accuracy": 97.5, "test_accuracy": 96.5,
        },
        {"seed": 2, "arch": ARCHS[2], "search_seconds": 3.0, "pruned_share": 0.75},
    ]  # fmt: skip
    assert format_csv(columns, rows).splitlines()[2] == f"2,{ARCHS[2]},3.0,0.75,,,,,,"


def test_how_sure_a_search_was_is_the_mean_over_the_decisions_of_its_rounds(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0], 2: [1.0]})
    save_ranking_of(folder / "round2", [(1, 0.3)])
    # Round 3 is left from an earlier search.
    save_ranking_of(folder / "round3", [(1, 0.0)])
    _, (row,) = summarise(tmp_path, [0])
    assert row["pruned_share"] == 0.6


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("round2/scores/2.json", None, r"round2/scores/2\.json cannot be read"),
        ("round1/scores/1.json", None, r"round1/scores/1\.json cannot be read"),
        ("round1/scores/1.json", {"shard": "2/2", "wall_seconds": 1.0}, "is of shard '2/2'"),
        ("round1/scores/1.json", {"shard": 7, "wall_seconds": 1.0}, "is of shard '7'"),
        ("round1/scores/1.json", {"shard": "1/1"}, "does not say how many seconds"),
        ("round1/scores/1.json", {"shard": "1/1", "wall_seconds": "long"}, "does not say how many seconds"),
        ("round2/ranking.csv", None, r"round2/ranking\.csv cannot be read"),
    ],
)
def test_a_missing_or_damaged_record_is_a_sentence_and_no_zero(tmp_path, name, change, sentence):
    folder = save_seed(tmp_path, 0, shards={1: [1.0], 2: [2.0, 3.0]})
    assert summarise(tmp_path, [0])[1][0]["search_seconds"] == 6
    (folder / name).unlink()
    if change is not None:
        write_json(folder / name, change)
    for read in (lambda: summarise(tmp_path, [0]), lambda: show(tmp_path)):
        with pytest.raises(TenasError, match=sentence):
            read()


def test_shards_that_an_earlier_search_left_do_not_count(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0] * 5})
    save_seed(tmp_path, 0, shards={1: [10.0, 20.0]})
    assert (folder / "round1" / "scores" / "5.json").exists()
    _, rows = summarise(tmp_path, [0])
    assert rows[0]["search_seconds"] == 30


def test_accuracies_of_the_benchmark_have_columns_of_their_own(tmp_path):
    index = tmp_path / "index.csv"
    index.write_text(
        "arch,cifar10_test,cifar100_test\n"
        + "".join(f"{arch},{90 + i}.5,{70 - i}\n" for i, arch in enumerate(ARCHS[:4]))
        + f"{ARCHS[3].replace('none~0|+', 'skip_connect~0|+', 1)},80.25,\n"
    )
    for seed in (0, 1):
        folder = save_seed(tmp_path / "run", seed, shards={1: [1.0]}, accuracy=90.0 + 2 * seed)
        write_json(folder / "benchmark.json", look_up(load_genotype(ARCHS[seed]), index))
    columns, rows = summarise(tmp_path / "run", [1, 0])
    assert columns[9:-1] == [
        "cifar10_test", "cifar10_test_rank", "cifar10_test_regret",
        "cifar100_test", "cifar100_test_rank", "cifar100_test_regret",
    ]  # fmt: skip
    assert [list(row.values())[9:] for row in rows] == [[91.5, 3, 2.0, 69.0, 2, 1.0], [90.5, 4, 3.0, 70.0, 1, 0.0]]

    text = show(tmp_path / "run")
    assert "cifar10_test 91.50 %, rank 3 of 5, 2.00 below the best" in text
    assert "retrained, 2 seeds: 91.00 (1.41) %" in text


def test_a_run_is_shown_with_what_it_has(tmp_path):
    run = tmp_path / "results" / "digits"
    save_seed(run, 10, shards={1: [61.4]})
    save_seed(run, 2, shards={1: [2.0]}, accuracy=98.61)
    text = show(run)
    assert text.index("seed 2") < text.index("seed 10")
    assert ARCHS[2] in text
    assert "98.61 % of the test images, epoch 3 of 4 (99.61 % in validation), 12,345 parameters" in text
    assert "No index file was given for the space nas-bench-201." in text
    assert "61 s of scoring\n" in text
    assert re.search(r"^  round  kind +subjects +kept +seconds  best\n  1      operators +4 +2 +61$", text, re.MULTILINE)
    assert text.count("retrained") == 1
    assert "report" not in text
    # One of another run, then one that has this.
    (tmp_path / "results" / "report.html").write_text('"results/other/summary.csv"')
    (run / "summary.csv").write_text("seed,arch\n2,x\n")
    assert show(run).splitlines()[-1] == f"table: {run / 'summary.csv'}, without seed 10"
    (run / "summary.csv").write_text("seed,arch\n2,x\n10,x\n")
    assert show(run).splitlines()[-1] == f"table: {run / 'summary.csv'}"
    (tmp_path / "results" / "report.html").write_text(f'"results/{run.name}/summary.csv"')
    assert show(run).splitlines()[-2:] == [
        f"table: {run / 'summary.csv'}",
        f"report: {tmp_path / 'results' / 'report.html'}",
    ]


def test_a_run_without_results_gets_a_sentence(tmp_path):
    with pytest.raises(TenasError, match="no seed there has a genotype yet"):
        show(tmp_path)
    with pytest.raises(TenasError, match=r"search\.json cannot be read"):
        summarise(tmp_path, [0])
    save_settings(tmp_path, 1)
    with pytest.raises(TenasError, match=r"genotype\.json cannot be read"):
        summarise(tmp_path, [0])


def test_results_of_another_genotype_are_not_mixed(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0]}, accuracy=90.0)
    write_json(folder / "benchmark.json", json.loads((folder / "benchmark.json").read_text()) | {"arch": ARCHS[1]})
    for read in (lambda: summarise(tmp_path, [0]), lambda: show(tmp_path)):
        with pytest.raises(TenasError, match=r"benchmark\.json is of another genotype"):
            read()


@pytest.mark.parametrize("change", ["cell", "genotype", "settings", None])
def test_a_retraining_that_the_run_no_longer_has_is_left_out(tmp_path, change):
    """A run may have had one, of another genotype, of other images, or with other settings."""
    folder = save_seed(tmp_path, 0, shards={1: [1.0]}, accuracy=90.0)
    files = {"retrain.json": tmp_path / "retrain.json", "genotype.json": folder / "genotype.json"}
    write_json(files["retrain.json"], {"epochs": 4})
    metrics = json.loads((folder / "retrain/metrics.json").read_text())
    made = {"provenance": {"inputs": {f"elsewhere/{name}": sha256(path) for name, path in files.items()}}}
    write_json(folder / "retrain/metrics.json", metrics | made | ({"arch": ARCHS[1]} if change == "cell" else {}))
    if change == "genotype":
        write_json(files["genotype.json"], json.loads(files["genotype.json"].read_text()) | {"made_by": {"inputs": {"x": "y"}}})
    if change == "settings":
        write_json(files["retrain.json"], {"epochs": 5})
    for read in (lambda: summarise(tmp_path, [0])[1][0].get("test_accuracy"), lambda: "90.00 %" in show(tmp_path)):
        if change is None:
            assert read()
        else:
            with pytest.warns(StaleWarning, match="are of an earlier genotype or other settings: they are left out"):
                assert not read()


def test_seeds_of_other_settings_are_left_out(tmp_path):
    for seed in (0, 1):
        folder = save_seed(tmp_path, seed, shards={1: [1.0]}, accuracy=90.0 + seed)
    written = json.loads((folder / "genotype.json").read_text())
    settings = json.loads((tmp_path / "search.json").read_text())
    write_json(folder / "genotype.json", written | {"made_by": {"settings": settings}})
    assert "seed 1" in show(tmp_path)
    # A preset may be called by another path.
    write_json(folder / "genotype.json", written | {"made_by": {"settings": settings | {"preset": "./other.yaml"}}})
    assert "seed 1" in show(tmp_path)
    write_json(folder / "genotype.json", written | {"made_by": {"settings": settings | {"exclude": ["none"]}}})
    with pytest.warns(StaleWarning, match="searched with other settings are left out: 1"):
        assert "seed 1" not in show(tmp_path)
    for read in (lambda: summarise(tmp_path, [0, 1]), lambda: read_found(tmp_path, [0, 1])):
        with pytest.raises(TenasError, match=r"Seed 1 of .* was searched with other settings than search\.json has now"):
            read()
    assert "seed 1  was searched with other settings than search.json has now" in status([tmp_path])
    assert "1 of 2 seeds" in status([tmp_path])


@pytest.mark.parametrize("name", ["benchmark.json", "retrain/metrics.json"])
def test_results_that_were_edited_are_refused(tmp_path, name):
    file = save_seed(tmp_path, 0, shards={1: [1.0]}, accuracy=90.0) / name
    written = sealed(json.loads(file.read_text()))
    write_json(file, written)
    summarise(tmp_path, [0])
    write_json(file, {**written, "test_accuracy": 99.0})
    for read in (lambda: summarise(tmp_path, [0]), lambda: show(tmp_path)):
        with pytest.raises(TenasError, match=f"{name} is not what was written: its own hash differs"):
            read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search.json", {"rounds": 1}),
        ("seed0/genotype.json", {"space": "nas-bench-201", "arch": 5}),
        ("seed0/genotype.json", {"space": "nas-bench-201"}),
        ("seed0/benchmark.json", {"arch": ARCHS[0], "index": 5}),
        ("seed0/benchmark.json", {"arch": ARCHS[0], "index": None, "accuracies": 5}),
    ],
)
def test_a_damaged_run_is_not_drawn_and_keeps_its_figures(tmp_path, capsys, name, value):
    save_seed(tmp_path, 0, shards={1: [1.0]})
    old = tmp_path / "figures/time.svg"
    old.parent.mkdir()
    old.write_text("drawn before")
    write_json(tmp_path / name, value)
    assert main(["plot", str(tmp_path)]) == 2
    assert re.fullmatch(r"tenas: .*\n", capsys.readouterr().err)
    assert old.read_text() == "drawn before"


def save_cells(path: Path, measures: list[str], cells: int, keep: int, repeats: int = 3) -> list[Cell]:
    """The table of a round of cells with random values; the cells that are kept."""
    generator = np.random.default_rng(len(measures))
    archs = [genotype.arch for _, genotype in zip(range(cells), get_space("nas-bench-201").genotypes(), strict=False)]
    subjects = Cells(get_space("nas-bench-201"), tuple(Cell(number, arch) for number, arch in enumerate(archs, start=1)))
    given = {name: {"repeats": repeats} for name in measures}
    values = {measurement: float(generator.random()) for measurement in plan(given, subjects.ids)}
    settings = {"measures": given, "aggregate": "log_rank_sum", "keep": keep, "each": 0}
    columns, rows, kept = rank_cells(settings, subjects, values)
    write_csv(path, columns, rows)
    return kept


def save_trainings(path: Path, cells: list[Cell], accuracies: list[float]) -> Cell:
    results = [{"valid_accuracy": value, "best_epoch": 3} for value in accuracies]
    columns, rows, (winner,) = rank_finalists(cells, results, 1)
    write_csv(path, columns, rows)
    for place in range(1, len(cells) + 1):
        write_json(path.parent / f"trainings/{place}/metrics.json", {"training_seconds": 12.5})
    return winner


@pytest.fixture
def funnel(tmp_path) -> Path:
    """A run that pruned, drew cells, measured them again, and trained four, as its stages write it."""
    run = tmp_path / "results" / "funnel"
    rounds = [
        {"kind": "operators"}, {"kind": "cells", "sample": 40, "keep": 8}, {"kind": "cells", "keep": 4},
        {"kind": "training", "keep": 1},
    ]  # fmt: skip
    preset = {"prune": 2, "measures": MEASURE, "change": "relative", "rounds": rounds}
    write_json(tmp_path / "preset.yaml", preset)
    settings = search_settings("nas-bench-201", str(tmp_path / "preset.yaml"))
    assert [entry["kind"] for entry in settings["rounds"]] == ["operators", "operators", "cells", "cells", "training"]
    settings["rounds"].pop(1)
    write_json(run / "search.json", settings)
    folder = run / "seed4"
    for round, seconds in {1: [100.0], 2: [20.0, 30.5], 3: [1000.0]}.items():
        for shard, wall in enumerate(seconds, start=1):
            record = {"shard": f"{shard}/{len(seconds)}", "wall_seconds": wall}
            write_json(folder / f"round{round}" / "scores" / f"{shard}.json", record)
    save_ranking_of(folder / "round1", DECISIONS)
    save_cells(folder / "round2" / "cells.csv", ["naswot"], 40, 8)
    kept = save_cells(folder / "round3" / "cells.csv", ["naswot"], 8, 4)
    winner = save_trainings(folder / "round4" / "trainings.csv", kept, [90.0, 91.25, 90.5, 80.0])
    write_json(folder / "genotype.json", {"space": "nas-bench-201", "arch": winner.arch})
    return run


def test_a_funnel_has_columns_of_its_own(funnel):
    columns, (row,) = summarise(funnel, [4])
    assert columns[:7] == [
        "seed", "arch", "search_seconds", "pruned_share", "kept_share", "training_seconds", "finalist_accuracy"
    ]  # fmt: skip
    shares = []
    for number in (2, 3):
        with (funnel / f"seed4/round{number}/cells.csv").open() as file:
            shares += [float(line["kept_share"]) for line in csv.DictReader(file) if line["kept"] == "1"]
    assert len(shares) == 8 + 4
    assert row["kept_share"] == pytest.approx(sum(shares) / 12, abs=5e-5)
    assert (row["search_seconds"], row["training_seconds"], row["finalist_accuracy"]) == (1150.5, 50.0, 91.25)
    assert row["pruned_share"] == 0.75
    assert accuracies([row]) == {"seed4": {"finalist_accuracy": 91.25}}


def test_a_funnel_is_told_round_by_round(funnel):
    arch = json.loads((funnel / "seed4/genotype.json").read_text())["arch"]
    lines = show(funnel).splitlines()
    start = lines.index("seed 4")
    best = {}
    for number in (2, 3):
        with (funnel / f"seed4/round{number}/cells.csv").open() as file:
            best[number] = next(line["arch"] for line in csv.DictReader(file) if line["place"] == "1")
    assert [line.split(maxsplit=5) for line in lines[start + 1 : start + 6]] == [
        ["round", "kind", "subjects", "kept", "seconds", "best"],
        ["1", "operators", "4", "2", "100"],
        ["2", "cells", "40", "8", "50", best[2]],
        ["3", "cells", "8", "4", "1,000", best[3]],
        ["4", "training", "4", "1", "50", f"91.25 %  {arch}"],
    ]
    assert lines[start + 6] == "  search     1150 s of scoring, 50 s of short trainings"
    assert lines[start + 7] == f"  genotype   {arch}"


def test_a_measure_that_is_the_same_for_all_is_told(funnel, capsys):
    """By the ranking, wherever it comes from: in the log of the round, and by show."""
    path = funnel / "seed4/round3/cells.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    write_csv(path, rows[0].keys(), [row | {"naswot_score": "-inf"} for row in rows])
    lines = show(funnel).splitlines()
    assert lines[lines.index("seed 4") + 5] == "         naswot was 0 or infinite for all and decided nothing"
    assert "naswot was 0 or infinite for all" in summarise(funnel, [4])[1][0]["warnings"]
    warn_of_nothing([{"a_change": 0.0, "b_change": 0.5}, {"a_change": 0.0, "b_change": 1.0}], "_change", 2)
    warn_of_nothing([{"naswot_score": float("-inf")}] * 2, "_score", 1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "warning: round 2: a is the same for all, and decides nothing: other channels, cells, weights or batch"
    )
    assert second.startswith("warning: round 1: naswot is 0 or infinite for all, and decides nothing")


def test_a_table_tells_what_a_network_costs_that_was_not_trained(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0], 2: [1.0]})
    found = look_up(load_genotype(ARCHS[0]), "builtin")
    write_json(folder / "benchmark.json", found)
    columns, (row,) = summarise(tmp_path, [0])
    assert (row["params_cifar10"], row["flops_imagenet16"]) == (
        found["costs"]["params_cifar10"], found["costs"]["flops_imagenet16"],
    )  # fmt: skip
    assert columns[-2:] == ["flops_imagenet16", "warnings"]
    cost = f"{row['params_cifar10']:,} parameters, {row['flops_cifar10'] / 1e6:,.1f} M multiply-adds"
    assert any(line.startswith("  benchmark  cifar10_test") and line.endswith(cost) for line in show(tmp_path).splitlines())


def test_a_funnel_lacks_nothing_silently(funnel):
    tables = [funnel / "seed4" / name for name in ("round2/cells.csv", "round4/trainings.csv", "round2/scores/2.json")]
    for path in (*tables, funnel / "seed4/round4/trainings/3/metrics.json"):
        text = path.read_text()
        path.unlink()
        with pytest.raises(TenasError, match=f"{re.escape(str(path))} cannot be read"):
            summarise(funnel, [4])
        path.write_text(text)
    path = funnel / "seed4/round4/trainings.csv"
    text = path.read_text()
    path.write_text(text.replace("91.25", "much"))
    with pytest.raises(TenasError, match="'much' for 'valid_accuracy', which is not a number"):
        summarise(funnel, [4])
    path.write_text(text.replace(",1,1\n", ",5,1\n"))
    with pytest.raises(TenasError, match="no cell in the first place"):
        summarise(funnel, [4])


def test_what_a_run_is_set_beside_has_the_searches_of_the_authors_that_lie_next_to_it(funnel):
    """Short trainings from the table: the run, without them, and the best of `released` by the same column."""
    table = read_index("builtin").set_index("arch")
    settings = json.loads((funnel / "search.json").read_text())
    settings["rounds"][-1]["column"] = "cifar10_valid_e12"
    write_json(funnel / "search.json", settings)
    record = funnel / "seed4/round1/scores/1.json"
    write_json(record, json.loads(record.read_text()) | {"inputs": {"data/digits/images.npy": "a" * 64}})
    arch = json.loads((funnel / "seed4/genotype.json").read_text())["arch"]
    write_json(funnel / "seed4/benchmark.json", look_up(arch, "builtin"))
    with (funnel / "seed4/round3/cells.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kept"] == "1"]
    cells = [Cell(int(row["cell"]), row["arch"]) for row in sorted(rows, key=lambda row: int(row["place"]))]
    write_json(funnel / "seed4/round3/shortlist.json", shortlist_json(get_space("nas-bench-201"), cells))
    lines = {line[2:-54].strip(): line[-54:].split() for line in show(funnel).split("test accuracy, %")[1].splitlines()[1:]}
    assert lines["this run"] == [f"{table.loc[arch, name]:.2f}" for name in TESTS]
    assert lines["this run without its trainings"] == [f"{table.loc[cells[0].arch, name]:.2f}" for name in TESTS]
    assert not [name for name in lines if "released" in name]
    # A run beside it of two seeds; one more is still at work, and one is damaged.
    released = funnel.parent / "released"
    write_json(released / "search.json", search_settings("nas-bench-201", "released"))
    write_json(released / "seed0/round1/scores/1.json", json.loads(record.read_text()))
    worse, better = table["cifar10_valid_e12"].sort_values().index[[9000, 12000]]
    for seed, found in enumerate((better, worse)):
        write_json(released / f"seed{seed}/genotype.json", {"space": "nas-bench-201", "arch": found})
    write_json(funnel.parent / "damaged/search.json", {"rounds": 1})
    write_json(funnel.parent / "early/search.json", search_settings("nas-bench-201", "released"))
    lines = {line[2:-54].strip(): line[-54:].split() for line in show(funnel).split("test accuracy, %")[1].splitlines()[1:]}
    name = "best of 2 seeds of run released, by the same short trainings"
    assert lines[name] == [f"{table.loc[better, column]:.2f}" for column in TESTS]


def save_ranking(
    folder: Path, round: int, changes: list[tuple[object, object]], cells: tuple[str, str] = ("cell", "cell")
) -> None:
    columns = ["cell", "edge", "target", "source", "operator"]
    columns += [
        "kappa_change",
        "kappa_se",
        "kappa_rank",
        "regions_change",
        "regions_se",
        "regions_rank",
        "pruned",
        "pruned_share",
    ]
    rows = [
        {
            "cell": cells[i // 2],
            "edge": i // 2, "target": 1 + i // 2, "source": 0, "operator": f"operator_{round}_{i}",
            "kappa_change": kappa, "kappa_se": 0.1, "regions_change": regions, "regions_se": "", "pruned": i % 2,
            "kappa_rank": i + 1, "regions_rank": i + 1, "pruned_share": 0.5,
        }
        for i, (kappa, regions) in enumerate(changes)
    ]  # fmt: skip
    write_csv(folder / f"round{round}" / "ranking.csv", columns, rows)


def test_the_figure_shows_every_trial_of_every_round(tmp_path):
    for round in (1, 2, 10):
        save_ranking(tmp_path, round, [(0.5, -1), (-0.25, 2), ("-inf", 0), ("inf", 1)])
    rankings = [tmp_path / f"round{round}" / "ranking.csv" for round in (1, 2, 10)]
    plot_rankings(rankings, tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    for round in (1, 2, 10):
        for i in range(4):
            assert svg.count(f"operator_{round}_{i}<") == 1
        assert f"round {round}: kappa" in svg
        assert f"round {round}: regions" in svg
    assert svg.index("round 2: kappa") < svg.index("round 10: kappa")
    # Both colours are there, and the same rankings are the same bytes.
    assert len(re.findall("#ee6677", svg)) > 5
    assert len(re.findall("#4477aa", svg)) > 5
    plot_rankings(rankings, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "rankings.svg").read_bytes()


def test_the_figure_says_which_way_a_measure_prunes_and_which_decides_nothing(tmp_path):
    """What raises kappa most when it stays, and what costs fewest regions when it goes, is pruned first."""
    save_ranking(tmp_path, 1, [(0.5, -3), (0.25, 0), (-1, 7)])
    plot_rankings([tmp_path / "round1/ranking.csv"], tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    assert svg.index("pruned first \N{RIGHTWARDS ARROW}") < svg.index("\N{LEFTWARDS ARROW} pruned first")
    save_ranking(tmp_path, 1, [(0.5, 3), (0.25, 3), (-1, 3)])
    plot_rankings([tmp_path / "round1/ranking.csv"], tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    assert "round 1: regions, the same for all" in svg
    assert svg.count("pruned first") == 1


def test_the_figure_shows_cells_and_trainings(tmp_path):
    """Two measures: one panel of their ranks. Three: one each. One: its scores. Kept cells have their places, the best a star."""
    paths = [tmp_path / f"round{number}" / "cells.csv" for number in (1, 2, 3)]
    save_cells(paths[0], ["naswot", "synflow", "zico"], 40, 6)
    save_cells(paths[1], ["naswot", "synflow"], 12, 4)
    kept = save_cells(paths[2], ["naswot"], 9, 3)
    trainings = tmp_path / "round4" / "trainings.csv"
    save_trainings(trainings, kept, [71.5, 93.25, 80.0])
    save_ranking(tmp_path, 0, [(1, 1), (2, 2)])
    tables = [tmp_path / "round0" / "ranking.csv", *paths, trainings]
    plot_rankings(tables, tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    titles = re.findall(r"round \d: [\w ]+", svg)
    assert titles == [
        "round 0: kappa", "round 0: regions", "round 1: synflow", "round 1: zico", "round 1: zico",
        "round 2: synflow", "round 3: cells by naswot", "round 4: short trainings",
    ]  # fmt: skip
    assert [svg.count(f"against {name}<") for name in ("naswot", "synflow")] == [3, 1]
    for label in ("rank by naswot, 1 for the best", "rank by zico", "rank by synflow", "naswot, more is better",
                  "validation accuracy, %; star: the best, o: kept, x: left out"):  # fmt: skip
        assert label in svg
    assert svg.count(">o: kept (6), x: left out (34)<") == 3
    assert svg.count(">o: kept (4), x: left out (8)<") == 1
    assert [svg.index(f">{value}<") for value in ("93.25", "80.00", "71.50")] == sorted(
        svg.index(f">{value}<") for value in ("93.25", "80.00", "71.50")
    )
    for cell in kept:
        assert f">cell {cell.number} (shortlist " in svg
    plot_rankings(tables, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "rankings.svg").read_bytes()


def test_a_figure_of_thousands_of_cells_stays_small(tmp_path):
    path = tmp_path / "round1" / "cells.csv"
    save_cells(path, ["naswot", "synflow"], 3000, 50, repeats=1)
    plot_rankings([path], tmp_path / "rankings.svg")
    assert (tmp_path / "rankings.svg").stat().st_size < 300_000


def test_a_faulty_table_of_cells_gets_a_sentence(tmp_path):
    path = tmp_path / "round1" / "cells.csv"
    kept = save_cells(path, ["naswot", "synflow"], 5, 2)
    lines = path.read_text().splitlines(keepends=True)

    def refused(sentence: str, table: Path = path) -> None:
        with pytest.raises(TenasError, match=sentence):
            plot_rankings([table], tmp_path / "rankings.svg")
        assert not (tmp_path / "rankings.svg").exists()

    path.write_text(lines[0].replace("naswot_se", "naswot_error") + "".join(lines[1:]))
    refused("lacks naswot_se")
    path.write_text("".join(lines[:2]) + ",".join(["much"] * len(lines[0].split(","))) + "\n")
    refused("damaged in line 3: could not convert string to float: 'much'")
    trainings = tmp_path / "round2" / "trainings.csv"
    save_trainings(trainings, kept, [1.0, 2.0])
    trainings.write_text(trainings.read_text().replace("2.0,", ",", 1))
    refused("damaged in line 3", trainings)
    refused(
        "table.csv is not the table of a round; their names are ranking.csv, cells.csv, trainings.csv", tmp_path / "table.csv"
    )


def test_cell_types_are_told_apart(tmp_path):
    save_ranking(tmp_path, 1, [(1, 1)] * 4, ("normal", "reduction"))
    plot_rankings([tmp_path / "round1" / "ranking.csv"], tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    assert "normal 1&lt;-0 operator_1_0" in svg
    assert "reduction 2&lt;-0 operator_1_3" in svg


def test_a_faulty_ranking_gets_a_sentence_and_leaves_nothing(tmp_path):
    def refused(sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            plot_rankings([tmp_path / "round1" / "ranking.csv"], tmp_path / "rankings.svg")
        assert not (tmp_path / "rankings.svg").exists()

    refused("round1/ranking.csv cannot be read")
    save_ranking(tmp_path, 1, [(1, 1), (2, "much")])
    refused("damaged in line 3: could not convert string to float: 'much'")
    path = tmp_path / "round1" / "ranking.csv"
    save_ranking(tmp_path, 1, [(1, 1), (2, 2)])
    text = path.read_text()
    path.write_text(text[: text.index("operator_1_1")])
    refused("damaged in line 3")
    path.write_text(text.replace("pruned", "gone"))
    refused("lacks pruned")
    path.write_text(text.splitlines()[0] + "\n")
    refused("lacks measures or rows")


def test_the_report_is_read_without_torch():
    heavy = "{'torch', 'matplotlib', 'pandas'}"
    code = f"import sys, tenas.report, tenas.benchmark; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_summary_is_csv_that_reads_back(tmp_path):
    save_seed(tmp_path, 3, shards={1: [0.1, 0.2]}, accuracy=1 / 3)
    columns, rows = summarise(tmp_path, [3])
    write_csv(tmp_path / "summary.csv", columns, rows)
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["arch"] == ARCHS[3]
    assert float(row["test_accuracy"]) == 1 / 3
    assert row["search_seconds"] == "0.3"


def test_the_metrics_are_the_accuracies_alone():
    rows = [{"seed": 3, "arch": "a", "search_seconds": 9.0, "parameters": 5, "best_epoch": 2, "valid_accuracy": None,
             "test_accuracy": 90.5, "cifar10_test": 93.1, "cifar10_test_rank": 7, "cifar10_test_regret": 1.2}]  # fmt: skip
    assert accuracies(rows) == {"seed3": {"test_accuracy": 90.5, "cifar10_test": 93.1}}


def test_equal_contents_give_equal_bytes_whatever_the_layout_rounds_to(tmp_path):
    """The solver of the constrained layout ends a rounding error apart from one process to the next."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Apart(ConstrainedLayoutEngine):
        def execute(self, fig):
            super().execute(fig)
            for axes in fig.axes:
                axes._set_position([part + 1e-13 for part in axes.get_position(original=True).bounds])

    for name, engine in (("one.svg", ConstrainedLayoutEngine()), ("other.svg", Apart())):
        with style():
            figure = Figure(figsize=(4, 3), layout=engine)
            for axes in figure.subplots(1, 2):
                axes.plot([1, 2, 3], [0.1, 0.4, 0.2])
            save_svg(figure, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    assert b"clip-path" in (tmp_path / "one.svg").read_bytes()


# --- figures and page


def test_measures_that_told_little_are_warned_of():
    """The gravest fault of each measure, and those that were taken once; costs are exact."""

    def rows(**scores: list) -> list[dict[str, str]]:
        columns = {f"{name}_score": values for name, values in scores.items()}
        places = range(len(next(iter(scores.values()))))
        return [{name: str(values[place]) for name, values in columns.items()} for place in places]

    table = rows(a=[1, 1, 1, 1], b=["-inf"] * 4, c=[1, 2, "inf", 4], d=[3, 3, 3, 1], e=[1, 2, 2, 3], flops=[1, 2, 3, 4])
    for row in table:
        row |= {f"{name}_se": "0.5" for name in "abcd"} | {"e_se": "", "flops_se": ""}
    assert warnings_of_round(table, "_score") == [
        "a was the same for all and decided nothing",
        "b was 0 or infinite for all and decided nothing",
        "c was 0 or infinite for 1 of 4",
        "d was saturated: the same for 3 of 4",
        "one repeat only, and so no standard error: e",
    ]
    assert warnings_of_round([], "_score") == []


def test_the_page_of_a_run_needs_no_other_file(funnel):
    """All figures with their data; the page has the cell, times and warnings, loads nothing, and runs nothing."""
    run = funnel.rename(funnel.with_name("a<b> & $x_1$"))
    save_ranking(run / "seed4", 1, [(1, 1), (2, 2)])
    (run / "figures").mkdir()
    (run / "figures/rounds-seed9.svg").write_text("of a seed that the run no longer has")
    for place in range(1, 5):
        history = [{"epoch": epoch, "valid_accuracy": 10 * epoch + place} for epoch in (1, 2, 3)]
        write_csv(run / f"seed4/round4/trainings/{place}/history.csv", ["epoch", "valid_accuracy"], history)
    assert plot(run) == str(run / "overview.html")
    kinds = {".svg", ".png", ".csv"}
    assert {path.name for path in (run / "figures").iterdir()} == {
        f"{name}{kind}" for name in ("rounds-seed4", "time") for kind in kinds
    }
    svg = (run / "figures/rounds-seed4.svg").read_text()
    assert "round 4: validation accuracy by epoch" in svg
    with (run / "figures/rounds-seed4.csv").open() as file:
        drawn = list(csv.DictReader(file))
    assert [row["value"] for row in drawn if row["measure"] == "valid_accuracy, epoch 3"] == ["31.0", "32.0", "33.0", "34.0"]
    page = (run / "overview.html").read_text()
    assert "<title>a&lt;b&gt; &amp; $x_1$: overview</title>" in page
    arch = json.loads((run / "seed4/genotype.json").read_text())["arch"]
    assert arch in page
    assert "20 min 00 s" in page  # 1150.5 s of measurements, 50 s of trainings
    assert "No accuracy is known: nothing was retrained or looked up." in page
    for word in ("<script", "http://", "https://", "<link", "@import"):
        assert word not in page
    assert len(page) < 500_000
    before = {path.name: path.read_bytes() for path in (run / "figures").iterdir()}
    plot(run, seeds=[4])
    assert {path.name: path.read_bytes() for path in (run / "figures").iterdir()} == before
    assert (run / "overview.html").read_text() == page


def test_names_in_figures_are_text(tmp_path):
    """Neither a formula nor an element."""
    save_ranking(tmp_path, 1, [(1, 1), (2, 2)])
    path = tmp_path / "round1/ranking.csv"
    path.write_text(path.read_text().replace("operator_1_0", "<b>$x_1$&").replace("operator_1_1", '"a,b"'))
    with style():
        save_picture(draw_rounds([path]), tmp_path)
    svg = (tmp_path / "rounds.svg").read_text()
    assert "&lt;b&gt;$x_1$&amp;" in svg
    assert "<b>" not in svg
    with (tmp_path / "rounds.csv").open() as file:
        subjects = {row["subject"] for row in csv.DictReader(file)}
    assert {subject.partition(" ")[2] for subject in subjects} == {"<b>$x_1$&", "a,b"}


def test_what_was_found_stands_among_all_cells(funnel):
    """What the rounds left of the table, the best cell, the largest, ResNet's, and accuracies of several seeds."""
    table = read_index("builtin")
    archs = table["arch"].tolist()
    sampled = [Cell(number, arch) for number, arch in enumerate(archs[100:140], start=1)]
    space = get_space("nas-bench-201")
    settings = json.loads((funnel / "search.json").read_text())
    left = {1: sampled, 2: sampled[:8], 3: sampled[:4], 4: sampled[:1]}
    for number, cells in list(left.items())[1:]:
        name = "finalists" if number == 4 else "shortlist"
        write_json(funnel / f"seed4/round{number}/{name}.json", shortlist_json(space, cells))
        drawn = [{"cell": cell.number, "arch": cell.arch} for cell in left[number - 1]]
        write_csv(funnel / f"seed4/round{number}/sample.csv", ["cell", "arch"], drawn)
    mask = space.full_mask(("none",))
    write_json(funnel / "seed4/round1/mask.json", mask.to_json())
    found = Found(funnel, settings, {4: archs[100]})
    cloud = cloud_of(found, table)
    assert cloud.name == "cifar10_test"
    settings["rounds"][-1]["column"] = "cifar100_valid_e12"
    assert cloud_of(found, table).name == "cifar100_test"
    settings["rounds"][-1]["column"] = None
    panels = list(steps(found, 4, cloud.accuracy.index))
    assert [step.title.split("\n")[0] for step in panels] == ["4,096 left by", "40 drawn", "8 left by", "4 left by", "1 left by"]
    assert all("none~" not in arch for arch in panels[0].archs)
    known = landmarks(cloud, "nas-bench-201")
    assert (
        known["most parameters"]
        == "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    )
    assert cloud.rank[known["best there is"]] == 1
    assert cloud.accuracy[known["ResNet"]] == pytest.approx(93.97, abs=0.1)  # NAS-Bench-201, table 4
    with style():
        picture = draw_cloud(found, cloud)
        save_picture(picture, funnel / "figures")
    assert (funnel / "figures/cloud.svg").stat().st_size < 250_000
    assert picture.rows[-1] | {"panel": 0} == {
        "panel": 0, "what": "found by seed 4", "arch": archs[100], "parameters": round(table["params_cifar10"][100]),
        "accuracy": table["cifar10_test"][100], "rank": int(cloud.rank[archs[100]]),
    }  # fmt: skip


def test_accuracies_of_seeds_have_an_interval():
    one = Accuracy("test accuracy", "retrained here", {0: 90.0})
    assert one.statistics() == "90.00 %, one seed: no interval"
    three = Accuracy("cifar10_test", "looked up in the table", {0: 90.0, 1: 91.0, 2: 92.0}, 94.37)
    # t(0.975, 2) = 4.303, times 1 / sqrt(3).
    assert three.statistics() == "91.00 (1.00), [88.52, 93.48], n = 3"
    with style():
        picture = draw_seeds([one, three])
    assert [row["value"] for row in picture.rows] == [90.0, 90.0, 91.0, 92.0]
    with style():
        high = draw_seeds([Accuracy("test accuracy", "retrained here", {0: 99.6, 1: 99.9})])
    assert high.figure.axes[0].get_ylim()[1] <= 100.5
