"""The workflow as a user runs it: real commands on a tiny configuration."""

import ast
import copy
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, call, copy_repository, snakemake, succeed, write_config

from benchmarks.dag import configuration, jobs_of
from tenas.spaces import get_space

SEED = Path("results/digits/seed0")
ROUNDS = (1, 2, 3)
# What never makes a difference to a result, so that an edit there repeats nothing.
NO_RESULT = {"cli.py", "config.py", "errors.py", "files.py", "locks.py", "provenance.py", "settings.py"}


def changed(**changes: object) -> dict:
    """The tiny configuration with other values of its run."""
    config = copy.deepcopy(TINY)
    config["runs"]["digits"] |= changes
    return config


def job_counts(output: str) -> dict[str, int]:
    """The table of job stats that Snakemake prints, without its sum."""
    table = output.split("Job stats:")[1].split("\n\n")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if name != "total"}


def reasons(output: str) -> dict[str, list[str]]:
    """Rule -> why each of its jobs is to run, from a dry run."""
    found: dict[str, list[str]] = {}
    for name, reason in re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    reason: (.*)$", output, re.MULTILINE):
        found.setdefault(name, []).append(reason)
    return found


def with_new_code(output: str) -> set[str]:
    """Rules that a dry run repeats because of their own code or settings, not because of what another job makes."""
    return {name for name, why in reasons(output).items() if any("Params have changed" in reason for reason in why)}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected_files(rounds: tuple[int, ...], shards: int) -> set[str]:
    seed = {"genotype.json", "genotype.svg", "rankings.svg", "benchmark.json", "round0/mask.json"}
    seed |= {"retrain/history.csv", "retrain/metrics.json", "retrain/network.pt", "retrain/checkpoint.pt"}
    seed |= {"export/network.pt2", "export/network.onnx", "export/export.json"}
    for number in rounds:
        seed |= {f"round{number}/{name}" for name in ("ranking.csv", "mask.json")}
        seed |= {f"round{number}/scores/{shard}.{kind}" for shard in range(1, shards + 1) for kind in ("csv", "json")}
    return {"search.json", "retrain.json", "summary.csv", "metrics.json"} | {f"seed0/{name}" for name in seed}


def copied(finished: Path, to: Path) -> Path:
    """A copy of a finished run, with what Snakemake noted of it and the files' times."""
    shutil.copytree(finished, to, dirs_exist_ok=True)
    return to


# --- the graph of jobs


def test_a_dry_run_shows_the_whole_search(tmp_path):
    config = changed(seeds=[0, 7])
    config["shards"] = 3
    write_config(tmp_path, config)
    output = succeed(snakemake(tmp_path, "--dry-run"))
    # Snakemake goes on after an error in a rule that it tries for a file, and only prints it.
    assert "Traceback" not in output
    assert job_counts(output) == {
        "all": 1, "prepare": 1, "search_settings": 1, "retrain_settings": 1, "mask": 2, "score": 2 * 3 * 3, "prune": 2 * 3,
        "genotype": 2, "plot_rankings": 2, "benchmark": 2, "retrain": 2, "export": 2, "summary": 1,
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"config", ".snakemake"}


def test_a_job_with_several_gpus_is_a_process_each(tmp_path):
    """As a profile would give them; a dry run is what can be had without GPUs."""
    write_config(tmp_path, TINY | {"device": "cuda"})
    few, many = ("--set-resources", "retrain:gpu=4"), ("--resources", "gpu=4", "--")
    output = succeed(snakemake(tmp_path, "--dry-run", "--printshellcmds", *few, *many))
    assert re.search(r"^Shell command: torchrun --standalone --nproc-per-node 4 -m tenas.cli retrain ", output, re.MULTILINE)
    assert len(re.findall(r"^Shell command: tenas score ", output, re.MULTILINE)) == 6
    output = succeed(snakemake(tmp_path, "--dry-run", "--printshellcmds"))
    assert re.search(r"^Shell command: tenas retrain ", output, re.MULTILINE)


def test_no_shard_is_without_a_trial(tmp_path):
    # Rounds of 24, 18 and 12 trials and the whole network.
    write_config(tmp_path, TINY | {"shards": 20})
    assert job_counts(succeed(snakemake(tmp_path, "--dry-run")))["score"] == 20 + 19 + 13


def test_a_space_with_all_its_operators_has_one_round_more(tmp_path):
    write_config(tmp_path, changed(preset="paper", search={}))
    assert job_counts(succeed(snakemake(tmp_path, "--dry-run")))["prune"] == 4


def test_the_benchmark_of_the_graph_counts_its_jobs(tmp_path):
    write_config(tmp_path, configuration(2))
    assert sum(job_counts(succeed(snakemake(tmp_path, "--dry-run", "--quiet", "rules"))).values()) == jobs_of(2)


def test_a_run_without_retraining(tmp_path):
    write_config(tmp_path, changed(retrain=None))
    counts = job_counts(succeed(snakemake(tmp_path, "--dry-run")))
    assert not {"retrain", "retrain_settings", "export"} & counts.keys()
    assert counts["summary"] == 1


def test_another_configuration_takes_the_place_of_the_default_one(tmp_path):
    write_config(tmp_path, TINY)
    other = changed(retrain=None)
    other["runs"] = {"another": other["runs"]["digits"]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    output = succeed(snakemake(tmp_path, "--dry-run", "--configfile", "other.yaml"))
    assert "results/another/summary.csv" in output
    assert "results/digits" not in output


@pytest.mark.parametrize(
    ("names", "rules"),
    [
        (["config.yaml"], {"retrain", "summary"}),
        (["darts.yaml"], {"retrain", "summary"}),
        (["nas-bench-201.yaml"], {"summary", "claims"}),
        (["study-nas-bench-201.yaml"], {"correlate"}),
        (["nas-bench-201.yaml", "study-nas-bench-201.yaml", "samples.yaml"], {"summary", "claims", "correlate", "table_search"}),
    ],
    ids=len,
)
def test_the_configurations_that_come_with_the_project(names, rules, tmp_path):
    """In a folder with the files that they ask for."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for name in ("nb201.csv.gz", "cifar10_train_10k.npz", "cifar100_960.npz", "imagenet16_960.npz"):
        (tmp_path / "data" / "downloads").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "downloads" / name).touch()
    output = succeed(snakemake(tmp_path, "--dry-run", "--configfile", *(f"config/{name}" for name in names)))
    assert rules <= job_counts(output).keys()


def test_threads_and_gpus_reach_the_jobs(tmp_path):
    write_config(tmp_path, TINY | {"threads": {"score": 2, "retrain": 1}})
    arguments = ("--dry-run", "--printshellcmds", "--config")
    cpu = succeed(snakemake(tmp_path, *arguments, "device=auto", CUDA_VISIBLE_DEVICES=""))
    assert len(re.findall(r"tenas score .*--threads 2 --device auto", cpu)) == 6
    assert len(re.findall(r"tenas retrain .*--threads 1 --device auto", cpu)) == 1
    assert "gpu=1" not in cpu
    for device, visible in (("auto", "0,1"), ("cuda", "")):
        gpu = succeed(snakemake(tmp_path, *arguments, f"device={device}", CUDA_VISIBLE_DEVICES=visible))
        assert len(re.findall(r"resources: .*gpu=1", gpu)) == 7  # six shards and the retraining


def test_the_profile_limits_gpu_jobs():
    profile = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())
    assert profile["resources"] == {"gpu": 1}


# --- a whole run


def test_a_run_makes_all_its_files_and_no_others(finished):
    assert files_below(finished / "results" / "digits") == expected_files(ROUNDS, shards=2)
    assert files_below(finished / "data" / "digits") == {"images.npy", "labels.npy", "card.json", "preview.png"}
    arch = json.loads((finished / SEED / "genotype.json").read_text())["arch"]
    (row,) = csv.DictReader((finished / "results/digits/summary.csv").open())
    assert row["seed"] == "0"
    assert row["arch"] == arch


def test_every_job_has_a_log_and_a_benchmark(finished):
    logs = files_below(finished / "logs")
    jobs = 1 + 2 + 1 + 6 + 3 + 1 + 1 + 1 + 1 + 1 + 1
    assert len([name for name in logs if name.endswith(".log")]) == jobs
    assert len([name for name in logs if name.endswith(".tsv")]) == jobs


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in succeed(snakemake(finished))


def search_bytes(folder: Path) -> dict[str, bytes]:
    """What a search decided, and all of its measurements in one order."""
    found = {f"ranking{r}": (folder / f"round{r}" / "ranking.csv").read_bytes() for r in ROUNDS}
    found |= {f"mask{r}": (folder / f"round{r}" / "mask.json").read_bytes() for r in (0, *ROUNDS)}
    for number in ROUNDS:
        shards = sorted((folder / f"round{number}" / "scores").glob("*.csv"))
        rows = [line for shard in shards for line in shard.read_bytes().splitlines()[1:]]
        found[f"scores{number}"] = b"\n".join(sorted(rows))
    return found | {name: (folder / name).read_bytes() for name in ("genotype.json", "genotype.svg")}


@pytest.mark.parametrize("shards", [1, 5])
def test_the_same_bytes_for_any_number_of_shards(finished, tmp_path, shards):
    write_config(tmp_path, TINY)
    succeed(snakemake(tmp_path, SEED / "genotype.json", "--config", f"shards={shards}"))
    assert len(list((tmp_path / SEED / "round1" / "scores").glob("*.csv"))) == shards
    assert search_bytes(tmp_path / SEED) == search_bytes(finished / SEED)


def test_the_same_bytes_from_tenas_search(finished, tmp_path):
    settings = json.loads((finished / "results/digits/search.json").read_text())
    preset = {key: value for key, value in settings.items() if key not in ("space", "preset")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    arguments = ("--preset", "tiny.yaml", "--data", finished / "data/digits", "--device", "cpu", "--threads", "2")
    succeed(call("tenas", "search", *arguments, "--seeds", "0", "--out", "found", cwd=tmp_path))
    ours, workflows = search_bytes(tmp_path / "found/seed0"), search_bytes(finished / SEED)
    for name in [f"scores{r}" for r in ROUNDS] + [f"ranking{r}" for r in ROUNDS]:
        assert ours[name] == workflows[name]
    # The preset's name is among the settings that a decision records; apart from it, the records agree.
    for name in ("mask3", "genotype.json"):
        assert {**json.loads(ours[name]), "made_by": None} == {**json.loads(workflows[name]), "made_by": None}


def test_the_report_needs_no_network(finished, tmp_path):
    folder = copied(finished, tmp_path)
    succeed(snakemake(folder, "--report", "results/report.html"))
    page = (folder / "results/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css)""", page)
    for text in ("genotype.svg", "rankings.svg", "summary.csv", "history.csv", "preview.png"):
        assert text in page


# --- what is repeated when something changes


@pytest.fixture(scope="module")
def edited(finished, tmp_path_factory):
    """A copy of the repository in which the tiny run has ended."""
    folder = copy_repository(tmp_path_factory.mktemp("repository"))
    copied(finished, folder)
    assert "Nothing to be done" in succeed(snakemake(folder, "--dry-run", root=folder))
    return folder


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("measures/__init__.py", {"score"}),
        ("networks/initialise.py", {"score"}),  # and retrain, whose genotype is made anew anyway
        ("search/prune.py", {"prune"}),
        ("search/draw.py", {"genotype"}),
        ("benchmark/__init__.py", {"benchmark"}),
        ("benchmark/searches.py", set()),  # the run asks for none
        ("retrain/__init__.py", {"retrain"}),
        ("export/__init__.py", {"export"}),
        ("report/summary.py", {"summary"}),
        ("report/rankings.py", {"plot_rankings"}),
        ("cli.py", set()),
        ("files.py", set()),
    ],
)
def test_an_edit_of_the_package_repeats_what_runs_it(edited, module, rules):
    path = edited / "tenas" / module
    text, status = path.read_text(), path.stat()
    try:
        path.write_text(text + "\n# edited\n")
        output = succeed(snakemake(edited, "--dry-run", root=edited))
        assert with_new_code(output) == rules
        assert ("Nothing to be done" in output) == (not rules)
    finally:
        path.write_text(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_touch_repeats_nothing(edited):
    for path in (edited / "tenas").rglob("*.py"):
        path.touch()
    assert "Nothing to be done" in succeed(snakemake(edited, "--dry-run", root=edited))


@pytest.mark.parametrize(
    ("key", "value", "rules"),
    [
        ("search", {"prune": 2}, {"search_settings"}),
        ("retraining", {"channels": 2, "epochs": 2, "batch": 128}, {"retrain_settings"}),
        ("seeds", [0, 1], {"summary"}),
    ],
)
def test_a_change_of_the_configuration_repeats_what_reads_it(edited, key, value, rules):
    output = succeed(snakemake(edited, "--dry-run", "--configfile", write_other(edited, changed(**{key: value})), root=edited))
    assert with_new_code(output) == rules
    assert ("score" in reasons(output)) == (key != "retraining")


def test_a_change_of_a_preset_is_noticed(edited):
    path = edited / "config/presets/default.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("change: log", "change: relative"))
        assert with_new_code(succeed(snakemake(edited, "--dry-run", root=edited))) == {"search_settings"}
    finally:
        path.write_text(text)


def write_other(folder: Path, config: dict) -> Path:
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def digested_parts() -> dict[str, list[str]]:
    """The table in workflow/rules/common.smk: rule -> parts of the package whose edits repeat it."""
    text = (ROOT / "workflow/rules/common.smk").read_text()
    return ast.literal_eval(re.search(r"^CODE = (\{.*?^\})", text, re.MULTILINE | re.DOTALL)[1])


TRACER = """
import inspect, json, sys
from pathlib import Path
import tenas
root = Path(tenas.__file__).parent
called = set()
def trace(frame, event, argument):
    code = frame.f_code
    # Functions alone: the bodies of modules and classes run at import.
    if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
        called.add(code.co_filename)
from tenas.cli import main
sys.setprofile(trace)
status = main(sys.argv[2:])
sys.setprofile(None)
ours = [Path(name).relative_to(root).as_posix() for name in called if name.startswith(str(root))]
Path(sys.argv[1]).write_text(json.dumps({"status": status, "called": ours, "torch": "torch" in sys.modules}))
"""


def with_claims(folder: Path) -> Path:
    """A run's folder whose configuration has two claims: of its own run, and of one that it does not have."""
    claim = {"says": "It is so", "source": "Somewhere", "value": 1.0, "accuracy": "test_accuracy"}
    (folder / "claims.yaml").write_text(
        yaml.safe_dump({"claims": {name: claim | {"runs": [name]} for name in ("digits", "absent")}})
    )
    write_config(folder, TINY | {"claims": "claims.yaml"})
    return folder


def with_a_table(folder: Path) -> Path:
    """A run's folder whose configuration has a table of the whole space, with made-up accuracies, and searches on it."""
    archs = [genotype.arch for genotype in get_space("nas-bench-201").genotypes()]
    names = [f"{dataset}_{part}" for dataset in ("cifar10", "cifar100", "imagenet16") for part in ("valid", "test")]
    values = [",".join(str((place * 37 + i) % 1000 / 10) for i in range(len(names))) for place in range(len(archs))]
    lines = [",".join(["arch", *names]), *(f"{arch},{value}" for arch, value in zip(archs, values, strict=True))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    searches = {"benchmark": {"nas-bench-201": "table.csv"}, "table_search": {"budgets": [1, 20], "seeds": 3}}
    write_config(folder, TINY | searches)
    return folder


def test_searches_on_the_table_are_made_when_the_configuration_asks_for_them(finished, tmp_path):
    folder = with_a_table(copied(finished, tmp_path))
    succeed(snakemake(folder, "results/table_search.csv"))
    rows = list(csv.DictReader((folder / "results/table_search.csv").open()))
    assert len(rows) == 3 * 3 * 3 * 2
    assert json.loads((folder / "results/table_search.json").read_text())["settings"]["searches"] == 3
    counts = job_counts(succeed(snakemake(folder, "--dry-run")))
    # The index is new, so what was found is looked up.
    assert counts == {"all": 1, "benchmark": 1, "summary": 1}
    write_config(folder, TINY | {"table_search": {}, "benchmark": {"nas-bench-201": None}})
    output = snakemake(folder, "--dry-run")
    assert output.returncode != 0
    assert "'table_search' needs an index file under 'benchmark.nas-bench-201'." in output.stdout


def test_claims_are_judged_by_the_runs_that_are_configured(finished, tmp_path):
    folder = with_claims(copied(finished, tmp_path))
    assert job_counts(succeed(snakemake(folder))) == {"all": 1, "claims": 1}
    claims = json.loads((folder / "results/claims.json").read_text())["claims"]
    (found,), (absent,) = (claim["results"] for claim in sorted(claims, key=lambda claim: claim["claim"], reverse=True))
    (row,) = csv.DictReader((finished / "results/digits/summary.csv").open())
    assert found["mean"] == float(row["test_accuracy"])
    # One seed has no interval.
    assert (found["verdict"], absent["verdict"]) == ("undecided", "not tested")
    assert "| absent | 1.00 | `absent` |" in (folder / "results/claims.md").read_text()
    (folder / "claims.yaml").write_text((folder / "claims.yaml").read_text().replace("value", "valeu"))
    output = snakemake(folder, "--dry-run")
    assert output.returncode != 0
    assert "unknown key 'valeu'" in output.stdout


@pytest.mark.parametrize(
    "rule",
    ["prepare", "mask", "score", "prune", "genotype", "benchmark", "table_search", "retrain", "export", "summary", "claims"],
)
def test_the_digest_of_a_rule_covers_the_code_that_it_runs(finished, tmp_path, rule):
    """Each rule's own command, with every function noted that it calls: their files must be in the rule's digest."""
    targets = {
        "prepare": "data/digits/card.json", "mask": SEED / "round0/mask.json", "score": SEED / "round1/scores/1.csv",
        "prune": SEED / "round1/mask.json", "genotype": SEED / "genotype.json", "benchmark": SEED / "benchmark.json",
        "retrain": SEED / "retrain/metrics.json", "export": SEED / "export/export.json", "summary": "results/digits/summary.csv",
        "claims": "results/claims.json", "table_search": "results/table_search.csv",
    }  # fmt: skip
    folder = with_claims(copied(finished, tmp_path / "run"))
    if rule == "table_search":
        with_a_table(folder)
    output = succeed(
        snakemake(folder, targets[rule], "--forcerun", rule, "--allowed-rules", rule, "--dry-run", "--printshellcmds")
    )
    (command,) = re.findall(r"^Shell command: tenas (.*) > logs/", output, re.MULTILINE)
    notes = tmp_path / "notes.json"
    (tmp_path / "tracer.py").write_text(TRACER)
    shell = f"{sys.executable} {tmp_path / 'tracer.py'} {notes} {command}"
    succeed(call("bash", "-c", shell, cwd=folder))
    found = json.loads(notes.read_text())
    assert found["status"] == 0
    assert found["torch"] == (rule in ("score", "retrain", "export"))
    parts = digested_parts()[rule]
    called = set(found["called"]) - NO_RESULT
    assert called
    assert {file for file in called if not any(file == p or file.startswith(f"{p}/") for p in parts)} == set()


# --- when something goes wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "nas"}, ["space", "'nas'", "nas-bench-201"]),
        ({"dataset": "cifar"}, ["data set", "'cifar'", "digits"]),
        ({"preset": "best"}, ["preset", "'best'", "default, paper, released"]),
        ({"retrain": "long"}, ["preset", "'long'", "digits, nas-bench-201"]),
        ({"epochs": 3}, ["'epochs'", "runs.digits", "seeds, retrain, retraining"]),
        ({"search": {"change": "cube"}}, ["'change'", "'cube'", "log, relative, absolute"]),
        ({"search": {"prune": 0}}, ["'prune'", "minimum"]),
        ({"seeds": 0}, ["runs.digits.seeds", "array"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_fault_in_the_configuration_is_a_sentence(tmp_path, change, words):
    write_config(tmp_path, changed(**change))
    assert_refused(tmp_path, words)


def test_an_unknown_source_and_device_are_sentences(tmp_path):
    write_config(tmp_path, TINY | {"datasets": {"digits": {"source": "mnist"}}})
    assert_refused(tmp_path, ["source", "'mnist'", "digits, "])
    write_config(tmp_path, TINY | {"device": "tpu"})
    assert_refused(tmp_path, ["'device'", "'tpu'", "auto, cpu, cuda"])


def assert_refused(folder: Path, words: list[str]) -> None:
    result = snakemake(folder)
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith("config: ")]
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence
    assert not (folder / "results").exists()
    assert not (folder / "data").exists()


def test_a_job_that_fails_shows_its_sentence_and_leaves_nothing(tmp_path):
    config = changed(search={"measures": {"ntk_condition_number": {"repeats": 1, "batch": 500}}})
    write_config(tmp_path, config)
    result = snakemake(tmp_path)
    assert result.returncode != 0
    assert "tenas: A batch of 500 images was asked for, but the data set has " in result.stdout
    assert "Traceback" not in result.stdout
    assert files_below(tmp_path / SEED) == {"round0/mask.json"}


def test_a_killed_run_leaves_only_whole_files_and_goes_on(finished, tmp_path):
    """SIGKILL to Snakemake and all of its jobs in the middle of a round; the same command again ends in the same bytes."""
    write_config(tmp_path, TINY)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # Once the second round is being scored, the first is done: there is something to lose and something to keep.
        started = time.monotonic()
        while not (tmp_path / "logs/digits/score/seed0-round2-1.log").exists():
            assert process.poll() is None
            assert time.monotonic() - started < 120
            time.sleep(0.05)
        time.sleep(1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path) if name.startswith("results/")}
    assert str(SEED / "round1/ranking.csv") in kept
    assert str(SEED / "round2/ranking.csv") not in kept
    for name, content in kept.items():
        if name.endswith(".csv"):
            assert content.endswith(b"\n")
            assert len({line.count(b",") for line in content.splitlines()}) == 1
        elif name.endswith(".json"):
            json.loads(content)
    succeed(snakemake(tmp_path, "--unlock"))
    output = succeed(snakemake(tmp_path))
    assert not re.search(r"rule score:\n(?:    .*\n)*?    wildcards: .*round=1", output)
    assert search_bytes(tmp_path / SEED) == search_bytes(finished / SEED)
