"""The workflow as a user runs it: real commands on a tiny configuration."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from helpers.runs import (
    FUNNEL,
    TINY,
    call,
    changed,
    copied,
    expected_files,
    expected_jobs,
    files_below,
    job_counts,
    loaded,
    planned,
    snakemake,
    succeed,
    with_new_code,
    write_config,
    write_table,
)

from benchmarks.dag import configuration, jobs_of
from tenas.errors import TenasError

SEED = Path("results/digits/seed0")
ROUNDS = (1, 2, 3)


# --- the graph of jobs


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("shards", "changes"),
    [
        (3, {"seeds": [0, 7]}),
        (20, {}),  # rounds of 24, 18 and 12 trials and the whole network: no shard is without one
        (2, {"preset": "paper", "search": {}}),  # one operator more, and so a round more
        (2, {"retrain": None, "retraining": {}}),
    ],
    ids=["seeds", "shards", "rounds", "without retraining"],
)
def test_a_dry_run_shows_the_whole_search(tmp_path, shards, changes):
    config = changed(TINY | {"shards": shards}, **changes)
    write_config(tmp_path, config)
    output = succeed(snakemake(tmp_path, "--dry-run"))
    # Snakemake goes on after an error in a rule that it tries for a file, and only prints it.
    assert "Traceback" not in output
    assert job_counts(output) == expected_jobs(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config", ".snakemake"}


def test_the_schedule_that_jobs_are_counted_by():
    """By hand, for what the other counts are taken from: NAS-Bench-201 without ``none`` has three rounds of 24, 18, 12 trials."""
    assert expected_jobs(changed(TINY | {"shards": 20}, seeds=[0, 7]), ROOT) == {
        "all": 1, "prepare": 1, "search_settings": 1, "retrain_settings": 1, "mask": 2, "score": 2 * (20 + 19 + 13),
        "prune": 2 * 3, "genotype": 2, "draw": 2, "lookup": 2, "retrain": 2, "export": 2, "summary": 1, "plot": 1,
    }  # fmt: skip


@pytest.mark.workflow
def test_a_job_with_several_gpus_is_a_process_each(tmp_path):
    """As a profile would give them; a dry run is what can be had without GPUs."""
    run = FUNNEL["runs"]["funnel"] | {"retrain": "digits", "limits": {}}
    write_config(tmp_path, TINY | {"device": "cuda", "runs": {"funnel": run}})
    many = ("--set-resources", "retrain:gpu=4", "training:gpu=2", "--resources", "gpu=4", "--")
    commands = [(job.rule, job.command) for job in planned(tmp_path, *many)]
    started = {rule: {text.partition(" -m tenas.cli ")[0] for name, text in commands if name == rule} for rule, _ in commands}
    assert started["retrain"] == {"torchrun --standalone --nproc-per-node 4"}
    assert started["training"] == {"torchrun --standalone --nproc-per-node 2"}
    assert all(text.startswith("tenas score ") for name, text in commands if name == "score")
    for job in planned(tmp_path):
        assert job.command.startswith("tenas ") or job.rule == "all"


@pytest.mark.workflow
def test_the_benchmark_of_the_graph_counts_its_jobs(tmp_path):
    write_config(tmp_path, configuration(2))
    assert sum(job_counts(succeed(snakemake(tmp_path, "--dry-run", "--quiet", "rules"))).values()) == jobs_of(2)


@pytest.mark.workflow
def test_another_configuration_takes_the_place_of_the_default_one(tmp_path):
    write_config(tmp_path, TINY)
    other = changed(retrain=None)
    other["runs"] = {"another": other["runs"]["digits"]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    output = succeed(snakemake(tmp_path, "--dry-run", "--configfile", "other.yaml"))
    assert "results/another/summary.csv" in output
    assert "results/digits" not in output


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("names", "rules"),
    [
        (["config.yaml"], {"retrain", "summary"}),
        (["darts.yaml"], {"retrain", "summary"}),
        pytest.param(["nas-bench-201.yaml"], {"summary", "claims"}, marks=pytest.mark.long),
        (["study-nas-bench-201.yaml"], {"correlate"}),
        (["study-depth.yaml", "samples.yaml"], {"correlate"}),
        (["study-regions.yaml", "samples.yaml"], {"correlate"}),
        (["study-darts.yaml", "samples.yaml"], {"correlate"}),
        (["study-darts-own.yaml", "samples.yaml"], {"correlate"}),
        (["study-supernet.yaml", "samples.yaml"], {"summary"}),
        pytest.param(
            ["nas-bench-201.yaml", "study-nas-bench-201.yaml", "samples.yaml"],
            {"summary", "claims", "correlate", "table_search"},
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_the_configurations_that_come_with_the_project(names, rules, tmp_path):
    """In a folder with the files that they ask for."""
    for folder in ("config", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("nb201.csv.gz", "cifar10_train_10k.npz", "cifar100_960.npz", "imagenet16_960.npz", "darts_189.csv"):
        (tmp_path / "data" / "downloads").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "downloads" / name).touch()
    # The table that the first of two commands makes.
    forty = tmp_path / "results/darts-forty/seed0/round2/trainings.csv"
    forty.parent.mkdir(parents=True)
    forty.touch()
    output = succeed(snakemake(tmp_path, "--dry-run", "--configfile", *(f"config/{name}" for name in names)))
    assert rules <= job_counts(output).keys()


@pytest.mark.workflow
def test_threads_and_gpus_reach_the_jobs(tmp_path):
    write_config(tmp_path, TINY | {"threads": {"score": 2, "retrain": 1}})
    cpu = planned(tmp_path, "--config", "device=auto", CUDA_VISIBLE_DEVICES="")
    scores, (training,) = ([job for job in cpu if job.rule == rule] for rule in ("score", "retrain"))
    count = expected_jobs(TINY, tmp_path)["score"]
    assert len(scores) == count
    assert all(" --threads 2 --device cpu " in job.command for job in scores)
    assert " --threads 1 --device cpu " in training.command
    assert not any(job.resources.get("gpu") == "1" for job in cpu)
    both, neither = ["retrain"] + count * ["score"], []
    for device, visible, more, on_a_gpu in (
        ("auto", "0,1", (), ["retrain"]),  # the processors are faster for measures
        ("auto", "NoDevFiles", (), neither),
        ("cuda", "", (), both),  # of a login node
        ("cuda", "", ("--set-resources", "score:gpu=0"), ["retrain"]),
        ("auto", "0,1", ("--set-resources", "score:gpu=1"), both),
    ):
        jobs = planned(tmp_path, "--config", f"device={device}", *more, CUDA_VISIBLE_DEVICES=visible)
        assert sorted(job.rule for job in jobs if job.resources.get("gpu") == "1") == on_a_gpu
        assert sorted(job.rule for job in jobs if " --device cuda " in job.command) == on_a_gpu
        assert sum(" --device cpu " in job.command for job in jobs) == len(both) - len(on_a_gpu)


def test_the_profile_limits_gpu_jobs():
    profile = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())
    assert profile["resources"] == {"gpu": 1}


# --- a whole run


def test_a_run_makes_all_its_files_and_no_others(finished):
    assert files_below(finished / "results" / "digits") == expected_files(TINY, "digits", finished)
    assert files_below(finished / "data" / "digits") == {"images.npy", "labels.npy", "card.json", "preview.png"}
    arch = json.loads((finished / SEED / "genotype.json").read_text())["arch"]
    (row,) = csv.DictReader((finished / "results/digits/summary.csv").open())
    assert row["seed"] == "0"
    assert row["arch"] == arch


def test_every_job_has_a_log_and_its_time(finished):
    logs = files_below(finished / "logs")
    jobs = sum(expected_jobs(TINY, finished).values()) - 1  # `all` has none
    assert len([name for name in logs if name.endswith(".log")]) == jobs
    assert len([name for name in logs if name.endswith(".tsv")]) == jobs


def test_a_second_run_has_nothing_to_do(finished, tmp_path):
    assert "Nothing to be done" in succeed(snakemake(copied(finished, tmp_path)))


def test_settings_that_were_replaced_since_are_not_taken(finished, tmp_path):
    """As by a checkout of another commit's results: Snakemake compares its notes with the configuration, not with files."""
    folder = copied(finished, tmp_path)
    path = folder / "results/digits/search.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"exclude": []}))
    done = snakemake(folder)
    assert done.returncode != 0
    assert "results/digits/search.json is of other settings than Snakemake has noted" in done.stdout
    shutil.rmtree(path.parent)
    assert "search_settings" in succeed(snakemake(folder, "--dry-run"))


def test_the_report_needs_no_network(finished, tmp_path):
    folder = copied(finished, tmp_path)
    succeed(snakemake(folder, "--report", "results/report.html"))
    page = (folder / "results/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css)""", page)
    for text in ("overview.html", "genotype.svg", "summary.csv", "history.csv", "preview.png"):
        assert text in page


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to open the report with")
def test_a_browser_opens_every_entry_of_the_report(finished, tmp_path):
    """By clicks, without a network: each entry is seen, no script fails, and each has a screenshot in the test's folder."""
    folder = copied(finished, tmp_path)
    succeed(snakemake(folder, "--report", "report.html"))
    page = (folder / "report.html").read_text()
    assert len(page) < 10e6
    before, end, after = page.rpartition("</body>")
    script = (ROOT / "tests/helpers/open_report.js").read_text()
    (folder / "driven.html").write_text(f"{before}<script>{script}</script>{end}{after}")
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=60000",
    )
    address = f"file://{folder / 'driven.html'}"
    output = succeed(call(BROWSER, *options, "--enable-logging=stderr", "--dump-dom", address, cwd=folder))
    said = [line for line in output.splitlines() if ":CONSOLE:" in line]
    assert [line for line in said if re.search("Uncaught|[Ee]rror|driver:|Refused|ERR_", line)] == []
    opened = re.search("<title>([^<]*)", output)[1].split(" | ")
    assert sorted(opened) == [
        "Data: IMG data:image/png;cha", "Overview: IFRAME data:text/html;cha", "digits: IMG data:image/svg+xml",
        "digits: history.csv", "digits: summary.csv",
    ]  # fmt: skip
    for number in range(1, len(opened) + 1):
        picture = folder / f"entry{number}.png"
        succeed(call(BROWSER, *options, f"--screenshot={picture}", "--window-size=1400,1000", f"{address}#{number}", cwd=folder))
        assert picture.stat().st_size > 10_000


def test_a_summary_is_not_made_without_a_record(finished, tmp_path):
    """Snakemake knows that the summary reads it; the stage by itself says what is missing."""
    folder, record = copied(finished, tmp_path), SEED / "round2/scores/2.json"
    (folder / record).unlink()
    output = snakemake(folder, "results/digits/summary.csv", "--forcerun", "summary", "--allowed-rules", "summary", "--dry-run")
    assert output.returncode != 0
    assert str(record) in output.stdout
    command = ("tenas", "summary", "results/digits", "--seeds", "0", "--out", "summary.csv", "--metrics", "metrics.json")
    refused = call(*command, cwd=folder)
    assert refused.returncode == 2
    assert f"The record of scores {record} cannot be read" in refused.stdout
    assert not (folder / "summary.csv").exists()


# --- what is repeated when the configuration changes: for edits of code see test_rules.py


@pytest.mark.parametrize(
    ("key", "value", "rules"),
    [
        ("search", {"prune": 2}, {"search_settings"}),
        ("retraining", TINY["runs"]["digits"]["retraining"] | {"epochs": 2}, {"retrain_settings"}),
        ("seeds", [0, 1], {"summary", "plot"}),
    ],
)
def test_a_change_of_the_configuration_repeats_what_reads_it(finished, tmp_path, key, value, rules):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed(**{key: value})))
    jobs = planned(finished, "--configfile", tmp_path / "other.yaml")
    assert with_new_code(jobs) == rules
    assert ("score" in {job.rule for job in jobs}) == (key != "retraining")


def test_searches_on_the_table_are_made_when_the_configuration_asks_for_them(finished, funnel, tmp_path):
    rows = list(csv.DictReader((funnel / "results/table_search.csv").open()))
    assert len(rows) == 3 * 3 * 3 * 2
    assert json.loads((funnel / "results/table_search.json").read_text())["settings"]["searches"] == 3
    # A table that is new: what was found is looked up.
    write_table(tmp_path)
    write_config(tmp_path, TINY | {"benchmark": {"nas-bench-201": str(tmp_path / "table.csv")}})
    found = job_counts(succeed(snakemake(finished, "--dry-run", "--configfile", tmp_path / "config/config.yaml")))
    assert found == {"all": 1, "lookup": 1, "summary": 1, "plot": 1}


def test_claims_are_judged_by_the_runs_that_are_configured(funnel, tmp_path):
    claims = json.loads((funnel / "results/claims.json").read_text())["claims"]
    of_run, absent = sorted((claim["results"][0] for claim in claims), key=lambda result: result["verdict"] == "not tested")
    (row,) = csv.DictReader((funnel / "results/funnel/summary.csv").open())
    assert of_run["mean"] == float(row["cifar10_test"])
    # One seed has no interval.
    assert (of_run["verdict"], absent["verdict"]) == ("undecided", "not tested")
    assert "| absent | 1.00 | `absent` |" in (funnel / "results/claims.md").read_text()
    write_table(tmp_path)
    (tmp_path / "claims.yaml").write_text((tmp_path / "claims.yaml").read_text().replace("value", "valeu"))
    with pytest.raises(TenasError, match="unknown key 'valeu'"):
        loaded(TINY | {"claims": "claims.yaml"}, tmp_path)


# --- when something goes wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "nas"}, ["space", "'nas'", "nas-bench-201"]),
        ({"dataset": "cifar"}, ["data set", "'cifar'", "digits"]),
        ({"preset": "best"}, ["preset", "'best'", "default, ", "paper, pruning, released"]),
        ({"retrain": "long"}, ["preset", "'long'", "digits, nas-bench-201"]),
        ({"epochs": 3}, ["'epochs'", "runs.digits", "seeds, retrain, retraining"]),
        ({"search": {"change": "cube"}}, ["'change'", "'cube'", "log, relative, absolute"]),
        ({"search": {"prune": 0}}, ["'prune'", "at least 1"]),
        ({"search": {"rounds": [{"kind": "training"}]}}, ["A round of trainings needs a round of cells before it"]),
        ({"seeds": 0}, ["runs.digits.seeds", "array"]),
        ({"limits": {"weight": 3}}, ["'weight'", "parameters, flops, latency"]),
        ({"limits": {"flops": "160%"}}, ["'flops'", "'60%'"]),
        ({"limits": {"latency": {"table": "no.csv", "column": "ms", "most": 3}}}, ["no.csv"]),
    ],
)
def test_a_fault_in_the_configuration_is_a_sentence(tmp_path, change, words):
    with pytest.raises(TenasError, match=r"^config: .*\.$") as refused:
        loaded(changed(**change), tmp_path)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datasets": {"digits": {"source": "mnist"}}}, ["source", "'mnist'", "digits, "]),
        ({"device": "tpu"}, ["'device'", "'tpu'", "auto, cpu, cuda"]),
        ({"runs": changed(limits={"parameters": 1000})["runs"]}, ["at most 1,000 parameters", "the smallest has 1,332"]),
    ],
    ids=["source", "device", "limits"],
)
def test_a_fault_stops_before_the_first_job(tmp_path, change, words):
    write_config(tmp_path, TINY | change)
    result = snakemake(tmp_path)
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith("config: ")]
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.workflow
def test_limits_are_checked_with_what_is_known_of_the_images(tmp_path):
    """The classes of a file are known once it is prepared. Until then it counts as two: 72 parameters fewer than with ten."""
    few, smallest = {"parameters": 1332 - 1}, {"parameters": 1332 - 8 * 9}
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(60) % 10)
    mine = {"datasets": {"digits": {"source": "npz", "path": "mine.npz", "images": 60}}}
    with pytest.raises(TenasError, match="the smallest has 1,332"):
        loaded(changed(limits=few), tmp_path)
    with pytest.raises(TenasError, match="the smallest has 1,260"):
        loaded(changed(TINY | mine, limits={"parameters": 1332 - 8 * 9 - 1}), tmp_path)
    config = changed(TINY | mine, limits=smallest, retrain="digits")
    write_config(tmp_path, config)
    result = snakemake(tmp_path, SEED / "genotype.json")
    assert result.returncode != 0
    assert "tenas: No cell of nas-bench-201 has at most 1,260 parameters: the smallest has 1,332" in result.stdout
    assert files_below(tmp_path / "results") == {"digits/search.json"}
    # Now its classes are known: the same sentence before anything is planned, and not for another sample of other classes.
    with pytest.raises(TenasError, match="the smallest has 1,332"):
        loaded(config, tmp_path)
    config["datasets"]["digits"]["images"] = 50
    loaded(config, tmp_path)


def test_limits_that_were_taken_are_not_counted_again(funnel):
    """Torch takes seconds to be imported, and each job on a cluster reads the configuration."""
    code = (
        "import sys, yaml; from tenas.config import load_config\n"
        "load_config(yaml.safe_load(open('config/config.yaml'))); assert 'torch' not in sys.modules"
    )
    succeed(call("python", "-c", code, cwd=funnel))


def test_a_round_that_a_search_does_not_have(finished):
    for name, sentence in {
        "round4/ranking.csv": "The run digits has no round 4; its rounds are 1 to 3.",
        "round1/cells.csv": "Round 1 of the run digits is a round of operators, not of cells.",
        "round1/scores/3.csv": "Round 1 of the run digits has 2 shards.",
    }.items():
        refused = snakemake(finished, "--dry-run", SEED / name)
        assert refused.returncode != 0
        assert sentence in refused.stdout


def test_a_job_that_fails_shows_its_sentence_and_leaves_nothing(finished, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    write_config(tmp_path, changed(search={"measures": {"ntk_condition_number": {"repeats": 1, "batch": 500}}}))
    result = snakemake(tmp_path)
    assert result.returncode != 0
    assert "tenas: A batch of 500 images was asked for, but the data set has " in result.stdout
    assert "Traceback" not in result.stdout
    assert files_below(tmp_path / SEED) == {"round0/mask.json"}
