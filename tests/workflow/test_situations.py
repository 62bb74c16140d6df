"""Clones, pulls, changes, crashes and experiments: Snakemake and DVC on the same files, and neither is fooled by the other.

``SITUATIONS`` lists all that are tested, here and elsewhere.
"""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import DEFAULT, FUNNEL, call, copy_repository, killed_when, search_bytes, snakemake, succeed, write_config

SEED = Path("results/digits/seed0")
SITUATIONS = {
    "a fresh clone, snakemake": "test_workflow.test_a_run_makes_all_its_files_and_no_others",
    "snakemake again": "test_workflow.test_a_second_run_has_nothing_to_do",
    "a fresh clone, dvc repro": "test_dvc.test_the_results_are_those_of_snakemake",
    "dvc repro again": "test_dvc.test_a_second_repro_runs_nothing",
    "snakemake after dvc repro": "test_dvc.test_nor_does_snakemake_after_it",
    "snakemake, recorded for DVC": "test_situations.test_a_recorded_run_is_up_to_date_for_dvc",
    "recording results that are out of date": "test_situations.test_what_is_out_of_date_is_not_recorded",
    "a clone that gets the results": "test_situations.test_a_clone_gets_the_results_and_runs_nothing",
    "a clone of other code or settings": "test_situations.test_a_clone_of_other_settings_is_not_given_the_results",
    "a parameter changed after a pull": "test_situations.test_changes_after_a_pull_are_noticed_both_ways",
    "the package edited after a pull": "test_situations.test_changes_after_a_pull_are_noticed_both_ways",
    "files touched": "test_rules.test_a_touch_repeats_nothing",
    "a parameter changed, snakemake": "test_workflow.test_a_change_of_the_configuration_repeats_what_reads_it",
    "a parameter changed, dvc repro": "test_dvc.test_a_change_runs_the_stages_that_it_touches",
    "a parameter changed back": "test_situations.test_an_experiment_is_compared_and_taken_back",
    "the package edited, snakemake": "test_rules.test_an_edit_of_the_package_repeats_what_runs_it",
    "a seed added": "test_dvc.test_a_second_seed_is_searched_and_summarised",
    "another number of shards, snakemake": "test_funnel.test_another_number_of_shards_repeats_nothing",
    "another number of shards, dvc repro": "test_dvc.test_another_number_of_shards_runs_nothing",
    "a file of one's own edited": "test_rules.test_an_edit_of_a_file_of_ones_own_repeats_what_runs_it",
    "an experiment": "test_situations.test_an_experiment_is_compared_and_taken_back",
    "results deleted": "test_situations.test_deleted_results_come_back_from_the_cache",
    "snakemake killed": "test_funnel.test_a_killed_run_leaves_only_whole_files_and_goes_on",
    "dvc repro killed": "test_situations.test_a_killed_repro_ends_in_the_same_files",
    "the paper's runs beside the default one": "test_situations.test_the_papers_runs_are_reproduced_apart",
    "downloaded data": "test_situations.test_a_downloaded_data_set_is_tracked",
    "a score job killed": "test_resume.test_a_killed_job_is_resumed",
}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return call(*command, cwd=folder, PYTHONPATH=str(folder))


def git(folder: Path, *arguments: str) -> str:
    return succeed(run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments))


def nothing_to_do(folder: Path) -> None:
    """Neither way would run a job, and DVC knows the results for those of this code and these settings."""
    assert "Nothing to be done" in succeed(snakemake(folder, "--dry-run", root=folder))
    assert "Running stage" not in succeed(run(folder, "dvc", "repro"))
    assert "up to date" in succeed(run(folder, "dvc", "status", "dvc.yaml"))


@pytest.fixture(scope="module")
def origin(finished_default, tmp_path_factory) -> Path:
    """A repository in which the run has ended and was recorded, with its lock committed and its results pushed to a folder."""
    folder = copy_repository(tmp_path_factory.mktemp("origin"))
    (folder / "dvc.lock").unlink(missing_ok=True)  # that of the default run
    write_config(folder, DEFAULT | {"benchmark": {}})
    git(folder, "init", "--quiet")
    succeed(run(folder, "dvc", "remote", "add", "--default", "folder", str(tmp_path_factory.mktemp("remote"))))
    shutil.copytree(finished_default, folder, dirs_exist_ok=True, ignore=lambda _, names: {"config"} & set(names))
    succeed(run(folder, "scripts/record"))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "A run and its lock")
    succeed(run(folder, "dvc", "push"))
    return folder


@pytest.fixture
def copy(origin, tmp_path) -> Path:
    """The repository with its results, to be changed."""
    succeed(call("cp", "-r", "--reflink=auto", "--preserve=timestamps", origin, tmp_path / "copy", cwd=tmp_path))
    return tmp_path / "copy"


@pytest.fixture
def clone(origin, tmp_path) -> Path:
    """What git alone has of it."""
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    assert not (tmp_path / "clone/results/digits").exists()
    return tmp_path / "clone"


def change(folder: Path, **changes: object) -> None:
    path = folder / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["runs"]["digits"] |= changes
    path.write_text(yaml.safe_dump(config))


def test_every_situation_has_its_test():
    assert len(SITUATIONS) >= 21
    paths = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    for name in SITUATIONS.values():
        module, test = name.split(".")
        tree = ast.parse(paths[module].read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.dvc
def test_a_recorded_run_is_up_to_date_for_dvc(copy):
    """And recorded again it is the same. That ``dvc repro`` by itself ends in the same files, test_dvc.py shows."""
    nothing_to_do(copy)
    lock = (copy / "dvc.lock").read_bytes()
    succeed(run(copy, "scripts/record"))
    assert (copy / "dvc.lock").read_bytes() == lock


@pytest.mark.dvc
def test_what_is_out_of_date_is_not_recorded(copy):
    lock = (copy / "dvc.lock").read_bytes()
    change(copy, seeds=[0, 1])
    refused = run(copy, "scripts/record")
    assert refused.returncode == 2
    assert "run snakemake first. Nothing was recorded." in refused.stdout
    assert (copy / "dvc.lock").read_bytes() == lock


@pytest.mark.dvc
def test_a_clone_gets_the_results_and_runs_nothing(origin, clone):
    succeed(run(clone, "scripts/restore"))
    ours, theirs = ({p.relative_to(f): p.read_bytes() for p in (f / "results").rglob("*.*")} for f in (clone, origin))
    assert ours == {path: content for path, content in theirs.items() if path.parts[-2:] != ("retrain", "checkpoint.pt")}
    nothing_to_do(clone)
    # No job has run: the records have the times of the origin's jobs, and the logs are the empty ones that a touch leaves.
    logs = [*clone.glob("logs/digits/score/*.log"), *clone.glob("logs/digits/retrain/*.log")]
    assert {path.stat().st_size for path in logs} <= {0}
    assert "files, all as recorded" in succeed(run(clone, "tenas", "audit", "results/digits"))
    scores = clone / SEED / "round2/scores/1.csv"
    content = scores.read_bytes()
    scores.write_bytes(content.replace(b"1", b"2", 1))
    refused = run(clone, "tenas", "audit", "results/digits")
    assert refused.returncode == 2
    assert re.search(rf"{SEED}/round2/scores/1.csv .*is not the file whose SHA-256 is recorded", refused.stdout)


@pytest.mark.dvc
def test_a_clone_of_other_settings_is_not_given_the_results(clone):
    change(clone, retraining=DEFAULT["runs"]["digits"]["retraining"] | {"batch": 64})
    refused = run(clone, "scripts/restore")
    assert refused.returncode == 2
    assert "restore: The results fetched are not those that dvc.lock's stages need (above); run dvc repro." in refused.stdout
    # Nor does Snakemake take those that were fetched, of which it has no notes.
    assert "is not of this configuration and code" in snakemake(clone, "--dry-run", root=clone).stdout


@pytest.mark.long
@pytest.mark.dvc
def test_changes_after_a_pull_are_noticed_both_ways(clone):
    succeed(run(clone, "scripts/restore"))
    for path, edit, rule, stage in (
        ("config/config.yaml", ("batch: 128", "batch: 64"), "retrain_settings", "settings"),
        ("tenas/search/shortlist.py", ("RESAMPLES = 1000", "RESAMPLES = 999"), "sample", "search@0"),
    ):
        text, status = (clone / path).read_text(), (clone / path).stat()
        assert edit[0] in text
        (clone / path).write_text(text.replace(*edit))
        planned = succeed(snakemake(clone, "--dry-run", root=clone))
        assert re.search(rf"rule {rule}:\n(?:    .*\n)*?    reason: .*Params have changed", planned), path
        changed = json.loads(run(clone, "dvc", "status", "--json", "dvc.yaml").stdout)
        assert stage in changed, path
        assert ("retrain@0" in changed) == (stage == "retrain@0")
        (clone / path).write_text(text)
        os.utime(clone / path, ns=(status.st_atime_ns, status.st_mtime_ns))
    nothing_to_do(clone)


@pytest.mark.dvc
def test_deleted_results_come_back_from_the_cache(origin, copy):
    shutil.rmtree(copy / "results/digits")
    shutil.rmtree(copy / "data")
    succeed(run(copy, "scripts/restore"))
    nothing_to_do(copy)
    assert (copy / SEED / "genotype.json").read_bytes() == (origin / SEED / "genotype.json").read_bytes()


@pytest.mark.long
@pytest.mark.dvc
def test_an_experiment_is_compared_and_taken_back(copy):
    """Other settings and seeds by ``dvc exp run``, accuracies beside the former ones; then back, with nothing measured again."""

    def read() -> list[dict]:
        stages = yaml.safe_load((copy / "dvc.lock").read_text())["stages"]
        return [part for stage in ("summary", "plot") for part in stages[stage]["deps"] if part["path"] == "logs/digits/gathered"]

    before, lock = (copy / "results/digits/metrics.json").read_bytes(), read()
    sets = ["runs.digits.search.measures.swap.batch=6", "runs.digits.seeds=[1]"]
    arguments = [part for text in sets for part in ("--set-param", f"config/config.yaml:{text}")]
    succeed(run(copy, "dvc", "exp", "run", "--name", "larger", *arguments))
    rounds = json.loads((copy / "results/digits/search.json").read_text())["rounds"]
    assert rounds[0]["measures"]["swap"]["batch"] == 6
    diff = json.loads(succeed(run(copy, "dvc", "metrics", "diff", "--json")))["results/digits/metrics.json"]
    assert {"seed0.test_accuracy", "seed1.test_accuracy"} <= diff.keys()
    assert 0 <= diff["seed1.test_accuracy"]["new"] <= 100
    git(copy, "checkout", "--quiet", ".")
    output = succeed(run(copy, "dvc", "repro"))
    # The folder that the summary depends on had the other seed's file: that second's work is repeated.
    assert set(re.findall(r"Running stage '(.*)'", output)) <= {"summary", "plot"}
    assert (copy / "results/digits/metrics.json").read_bytes() == before
    assert read() == lock


@pytest.mark.long
@pytest.mark.dvc
def test_a_killed_repro_ends_in_the_same_files(origin, copy):
    """SIGKILL in the second round: DVC starts the stage over, and its files are the same."""
    shutil.rmtree(copy / ".dvc/cache")
    shutil.rmtree(copy / "logs")
    change(copy, seeds=[0])
    lock = yaml.safe_load((copy / "dvc.lock").read_text())
    del lock["stages"]["search@0"]
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    killed_when(copy, "logs/digits/score/seed0-round2-1.log", "dvc", "repro", "search", PYTHONPATH=str(copy))
    assert not (copy / SEED / "genotype.json").exists()
    succeed(snakemake(copy, "--unlock", root=copy))
    succeed(run(copy, "dvc", "repro", "search"))
    for name in (
        "genotype.json",
        *(f"round{r}/{name}" for r in (1, 2, 3) for name in ("cells.csv", "shortlist.json", "scores/1.csv")),
    ):
        assert (copy / SEED / name).read_bytes() == (origin / SEED / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.dvc
def test_the_papers_runs_are_reproduced_apart(copy, funnel):
    """Their pipeline on a small configuration, a search with every kind of round: it ends where Snakemake has nothing to do, in
    Snakemake's bytes, and leaves the default run alone."""
    config = {key: FUNNEL[key] for key in ("shards", "device", "threads")} | {"benchmark": {}}
    config["datasets"] = {"cifar10": FUNNEL["datasets"]["digits"]}
    config["runs"] = {"cifar10-tiny": FUNNEL["runs"]["funnel"] | {"dataset": "cifar10"}}
    (copy / "config/nas-bench-201.yaml").write_text(yaml.safe_dump(config))
    assert "Running stage" not in succeed(run(copy, "dvc", "repro"))
    ran = re.findall(r"Running stage '(?:paper/dvc.yaml:)?(.*)'", succeed(run(copy, "dvc", "repro", "paper/dvc.yaml")))
    assert ran == ["prepare@cifar10", "run@cifar10-tiny"]
    planned = succeed(snakemake(copy, "--dry-run", "--configfile", "config/nas-bench-201.yaml", root=copy))
    assert "Nothing to be done" in planned
    assert "up to date" in succeed(run(copy, "dvc", "status", "paper/dvc.yaml"))
    assert search_bytes(copy / "results/cifar10-tiny/seed0") == search_bytes(funnel / "results/funnel/seed0")
    assert "files, all as recorded" in succeed(run(copy, "tenas", "audit", "results/cifar10-tiny"))


@pytest.mark.dvc
def test_a_downloaded_data_set_is_tracked(clone):
    """Git keeps the small file that says which bytes; the bytes go through the remote to the next clone."""
    folder = clone / "data/downloads/batches"
    folder.mkdir(parents=True)
    (folder / "one").write_bytes(b"image bytes")
    succeed(run(clone, "dvc", "add", "data/downloads/batches"))
    git(clone, "add", "data/downloads")
    assert "data/downloads/batches.dvc" in git(clone, "status", "--porcelain")
    git(clone, "commit", "--quiet", "--message", "The data set")
    succeed(run(clone, "dvc", "push", "data/downloads/batches.dvc"))
    git(clone.parent, "clone", "--quiet", str(clone), "another")
    another = clone.parent / "another"
    succeed(run(another, "dvc", "pull", "data/downloads/batches.dvc"))
    assert (another / "data/downloads/batches/one").read_bytes() == b"image bytes"
