"""A search that goes from operators over cells to short trainings, through Snakemake: the same bytes however it is run."""

import copy
import csv
import json
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import (
    FUNNEL,
    ONCE,
    call,
    copied,
    expected_files,
    expected_jobs,
    files_below,
    job_counts,
    killed_when,
    planned,
    search_bytes,
    snakemake,
    succeed,
    workflow,
    write_config,
    write_table,
)

from tenas.networks.costs import network_costs
from tenas.spaces import get_space

pytestmark = pytest.mark.workflow
NAS = get_space("nas-bench-201")
SEED = Path("results/funnel/seed0")
LARGEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
# The search alone.
SEARCH = {key: FUNNEL[key] for key in ("shards", "device", "threads", "datasets", "runs")}


def test_a_dry_run_shows_the_whole_search(tmp_path):
    write_table(tmp_path)
    write_config(tmp_path, FUNNEL)
    output = succeed(snakemake(tmp_path, "--dry-run"))
    # Snakemake goes on after an error in a rule that it tries for a file, and only prints it.
    assert "Traceback" not in output
    assert job_counts(output) == expected_jobs(FUNNEL, tmp_path)
    assert files_below(tmp_path) - {"config/config.yaml", "table.csv", "claims.yaml"} == {
        name for name in files_below(tmp_path) if name.startswith(".snakemake/")
    }


def test_a_funnel_makes_all_its_files_and_no_others(funnel):
    assert files_below(funnel / "results/funnel") == expected_files(FUNNEL, "funnel", funnel)
    assert "Nothing to be done" in succeed(snakemake(funnel, "--dry-run"))
    (row,) = csv.DictReader((funnel / "results/funnel/summary.csv").open())
    assert row["arch"] == json.loads((funnel / SEED / "genotype.json").read_text())["arch"]
    # The time of a search is that of its jobs, trainings on their own.
    records = [json.loads(path.read_text()) for path in (funnel / SEED).glob("round*/scores/*.json")]
    assert len(records) == 6
    assert float(row["search_seconds"]) == pytest.approx(sum(record["wall_seconds"] for record in records), abs=0.01)
    metrics = [json.loads(path.read_text()) for path in (funnel / SEED).glob("round4/trainings/*/metrics.json")]
    assert float(row["training_seconds"]) == pytest.approx(sum(value["training_seconds"] for value in metrics), abs=0.01)
    assert "files, all as recorded" in succeed(call("tenas", "audit", "results/funnel", cwd=funnel))


def test_every_job_has_a_log_and_its_time(funnel):
    logs = files_below(funnel / "logs")
    count = sum(expected_jobs(FUNNEL, funnel).values()) - 1
    assert len([name for name in logs if name.endswith(".log")]) == count
    assert len([name for name in logs if name.endswith(".tsv")]) == count


def test_the_cells_are_of_the_mask_within_the_limits_and_the_best_are_kept(funnel):
    mask = NAS.read_mask(funnel / SEED / "round1/mask.json")
    sample = list(csv.DictReader((funnel / SEED / "round2/sample.csv").open()))
    assert len({row["arch"] for row in sample}) == 12
    costs = [network_costs(NAS.parse(row["arch"]), side=32, classes=10, **NAS.trained) for row in sample]
    largest = network_costs(NAS.parse(LARGEST), side=32, classes=10, **NAS.trained)
    assert max(cost["parameters"] for cost in costs) <= 0.5e6
    assert max(cost["flops"] for cost in costs) <= 0.6 * largest["flops"]
    for row in sample:
        for cell in NAS.parse(row["arch"]).cells:
            for choice in cell:
                assert choice.operator in mask.operators("cell", NAS.edges.index((choice.target, choice.source)))
    states = ("round2/shortlist.json", "round3/shortlist.json", "round4/finalists.json")
    kept = [json.loads((funnel / SEED / name).read_text())["cells"] for name in states]
    assert [len(cells) for cells in kept] == [4, 3, 1]
    archs = [{cell["arch"] for cell in cells} for cells in kept]
    assert {row["arch"] for row in sample} > archs[0] > archs[1] > archs[2]
    trained = list(csv.DictReader((funnel / SEED / "round4/trainings.csv").open()))
    best = max(trained, key=lambda row: (float(row["valid_accuracy"]), -int(row["shortlisted"])))
    assert archs[2] == {best["arch"]}


# --- however it is run


@pytest.mark.long
@pytest.mark.parametrize(("shards", "target"), [(1, "genotype.json"), (5, "round3/shortlist.json")])
def test_the_same_bytes_for_any_number_of_shards(funnel, tmp_path, shards, target):
    write_config(tmp_path, SEARCH | {"shards": shards})
    succeed(snakemake(tmp_path, SEED / target))
    assert len(list((tmp_path / SEED / "round2/scores").glob("*.csv"))) == shards
    ours, theirs = search_bytes(tmp_path / SEED), search_bytes(funnel / SEED)
    assert {"round1/ranking.csv", "round1/scores", "round2/cells.csv", "round3/shortlist.json", "round3/scores"} <= ours.keys()
    assert ours == {name: theirs[name] for name in ours}


def test_the_same_bytes_from_tenas_search(funnel, tmp_path):
    run = FUNNEL["runs"]["funnel"]
    preset = yaml.safe_load((ROOT / "config/presets/pruning.yaml").read_text()) | run["search"]
    (tmp_path / "pruning.yaml").write_text(yaml.safe_dump(preset))
    limits = [part for name, most in run["limits"].items() for part in ("--limit", f"{name}={most}")]
    arguments = ("--preset", "pruning.yaml", "--data", funnel / "data/digits", "--device", "cpu", *limits)
    succeed(call("tenas", "search", *arguments, "--out", "found", cwd=tmp_path))
    ours, theirs = search_bytes(tmp_path / "found/seed0"), search_bytes(funnel / SEED)
    assert ours.keys() == theirs.keys()
    for name, content in theirs.items():
        if name.endswith(".json"):
            # The preset's name is among the settings that a decision records; apart from it, the records agree.
            pair = [json.loads(text) | {"made_by": None} for text in (ours[name], content)]
            assert pair[0] == pair[1], name
        else:
            assert ours[name] == content, name


@pytest.mark.long
def test_a_killed_run_leaves_only_whole_files_and_goes_on(funnel, tmp_path):
    """SIGKILL to Snakemake and all of its jobs, first while operators are scored, then during a training."""
    write_config(tmp_path, SEARCH)
    kept = {}
    for seen, ended in ((".*.partial", SEED / "round0/mask.json"), ("trainings/*/checkpoint.pt", SEED / "round3/cells.csv")):
        killed_when(tmp_path, f"{SEED}/**/{seen}", *workflow(), SEED / "genotype.json")
        assert (tmp_path / ended).exists()
        assert not (tmp_path / SEED / "genotype.json").exists()
        for path in (tmp_path / "results").rglob("*.*"):
            if path.name.startswith("."):
                continue
            if path.suffix == ".csv":
                assert len({line.count(",") for line in path.read_text().splitlines()}) == 1
                assert path.read_bytes().endswith(b"\n")
            elif path.suffix == ".json":
                json.loads(path.read_text())
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
        results = {name for name in files_below(tmp_path) if name.startswith("results/") and name.endswith((".csv", ".json"))}
        kept = {name: (tmp_path / name).stat().st_mtime_ns for name in results}
        succeed(snakemake(tmp_path, "--unlock"))
    succeed(snakemake(tmp_path, SEED / "genotype.json", "--quiet", "all"))
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    drawn = search_bytes(funnel / SEED)
    del drawn["genotype.svg"]
    assert search_bytes(tmp_path / SEED) == drawn


# --- what is repeated


def test_another_number_of_shards_repeats_nothing(funnel):
    """Of what has ended; what is measured again is split as configured (test_rules.py)."""
    for shards in (1, 5):
        assert "Nothing to be done" in succeed(snakemake(funnel, "--dry-run", "--config", f"shards={shards}"))


def test_a_round_is_ended_in_the_shards_that_it_was_begun_in(funnel, tmp_path):
    folder = copied(funnel, tmp_path)
    for name in ("scores/2.csv", "scores/2.json", "cells.csv", "shortlist.json"):
        (folder / SEED / "round2" / name).unlink()
    counts = {job.outputs[0] for job in planned(folder, SEED / "round2/cells.csv", "--config", "shards=5") if job.rule == "score"}
    assert counts == {str(SEED / "round2/scores/2.csv")}


def test_other_settings_are_measured_in_the_configured_number_of_shards(funnel, tmp_path):
    folder = copied(funnel, tmp_path)
    config = copy.deepcopy(FUNNEL) | {"shards": 5}
    config["runs"]["funnel"]["search"]["rounds"][1]["sample"] = 13
    write_config(folder, config)
    assert job_counts(succeed(snakemake(folder, "--dry-run")))["score"] == expected_jobs(config, folder)["score"]


# --- other ways to end a search


def variant(trainings: str, sample: object = 6, keep: int = 3) -> dict:
    """A run of cells drawn from the whole space, and a round of trainings."""
    rounds = [
        {"kind": "cells", "sample": sample, "keep": keep, "measures": {"synflow": ONCE}},
        FUNNEL["runs"]["funnel"]["search"]["rounds"][-1],
    ]
    run = {key: FUNNEL["runs"]["funnel"][key] for key in ("space", "dataset", "preset", "seeds")}
    return run | {"search": {"exclude": [], "rounds": rounds}, "trainings": trainings}


VARIANTS = SEARCH | {
    "benchmark": {"nas-bench-201": "table.csv"},
    "runs": {"none": variant("none"), "table": variant("table:cifar10_valid"), "listed": variant("real", "mine.csv", keep=2)},
}
LISTED = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> Path:
    """Searches without trainings, with some that are looked up, and with a list of one's own that has one cell, twice."""
    folder = tmp_path_factory.mktemp("variants")
    write_table(folder)
    (folder / "mine.csv").write_text(f"arch\n{LISTED}\n{LISTED}\n")
    write_config(folder, VARIANTS)
    with_jobs = ("--dry-run", "--quiet", "rules")
    assert job_counts(succeed(snakemake(folder, *with_jobs))) == expected_jobs(VARIANTS, folder)
    succeed(snakemake(folder))
    for name in VARIANTS["runs"]:
        untrained = {"seed0/round2/trainings/2/checkpoint.pt"} if name == "listed" else set()
        assert files_below(folder / "results" / name) == expected_files(VARIANTS, name, folder) - untrained
    return folder


def found(folder: Path, run: str) -> str:
    return json.loads((folder / f"results/{run}/seed0/genotype.json").read_text())["arch"]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results" / name).open()))


@pytest.mark.long
def test_without_trainings_the_best_ranked_is_found(variants):
    (best,) = [row["arch"] for row in rows_of(variants, "none/seed0/round1/cells.csv") if row["place"] == "1"]
    assert found(variants, "none") == best


@pytest.mark.long
def test_trainings_that_are_looked_up(variants):
    table = {row["arch"]: float(row["cifar10_valid"]) for row in csv.DictReader((variants / "table.csv").open())}
    rows = rows_of(variants, "table/seed0/round2/trainings.csv")
    assert {row["arch"]: float(row["valid_accuracy"]) for row in rows} == {row["arch"]: table[row["arch"]] for row in rows}
    assert len(rows) == 3
    assert table[found(variants, "table")] == max(table[row["arch"]] for row in rows)
    # The same cells, by the same measure.
    assert rows_of(variants, "table/seed0/round1/cells.csv") == rows_of(variants, "none/seed0/round1/cells.csv")


@pytest.mark.long
def test_fewer_cells_than_were_planned(variants):
    """The second shard has nothing to measure, and the second training no cell."""
    assert found(variants, "listed") == LISTED
    shards = [variants / f"results/listed/seed0/round1/scores/{shard}.csv" for shard in (1, 2)]
    assert [len(path.read_text().splitlines()) for path in shards] == [2, 1]
    empty = json.loads((variants / "results/listed/seed0/round2/trainings/2/metrics.json").read_text())
    assert empty["arch"] is None
    assert len(rows_of(variants, "listed/seed0/round2/trainings.csv")) == 1
    for name in VARIANTS["runs"]:
        assert "files, all as recorded" in succeed(call("tenas", "audit", f"results/{name}", cwd=variants))
