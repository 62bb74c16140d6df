"""The profiles against the workflow: what they say of its rules, by dry runs; memory by a job that really runs out of it."""

import importlib.util
import re

import pytest
import yaml
from helpers import ROOT
from helpers.runs import (
    BUILDS,
    FUNNEL,
    ONCE,
    TINY,
    Job,
    changed,
    copy_repository,
    planned,
    profile_lines,
    snakemake,
    succeed,
    write_config,
)

SMK = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow").rglob("*.smk"))
RULES = dict(re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", SMK, re.MULTILINE))
JOBS = {name for name, body in RULES.items() if "localrule: True" not in body}
PROFILES = sorted(path.name for path in (ROOT / "profiles").iterdir())


def read_profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


def first(jobs: list[Job], rule: str) -> Job:
    return next(job for job in jobs if job.rule == rule)


@pytest.mark.parametrize("name", PROFILES)
def test_every_entry_has_a_comment(name):
    lines = (ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if re.match(r"\w", line)]
    assert entries
    assert [lines[number] for number in entries if not lines[number - 1].startswith("#")] == []


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_rules_that_are_jobs(name):
    assert set(read_profile(name).get("set-resources", {})) <= JOBS


@pytest.mark.workflow
def test_each_job_has_its_memory_time_and_partition_on_slurm(tmp_path):
    """Of a configuration with every rule that is a job."""
    (tmp_path / "index.csv").touch()
    search = FUNNEL["runs"]["funnel"]["search"]
    runs = {"funnel": TINY["runs"]["digits"] | {"search": search}}
    studies = {"study": FUNNEL["studies"]["study"] | {"measures": {"snip": ONCE}}}
    config = TINY | {"device": "cuda", "runs": runs, "studies": studies, "benchmark": {"nas-bench-201": "index.csv"}}
    write_config(tmp_path, config)
    assert set(read_profile("slurm")["set-resources"]) == JOBS
    jobs = planned(tmp_path, "--profile", ROOT / "profiles/slurm")
    for rule in JOBS:
        given = first(jobs, rule).resources
        assert int(given["mem_mb"]) >= 4000
        assert int(given["runtime"]) >= 60
        on_gpu = rule in ("score", "study_score", "training", "retrain")
        assert (given["slurm_partition"], given.get("gpu")) == (("gpu", "1") if on_gpu else ("cpu", None))


def test_what_needs_a_gpu_in_one_profile_has_one_in_the_other():
    slurm, kubernetes = (read_profile(name)["set-resources"] for name in ("slurm", "kubernetes"))
    assert {rule for rule in slurm if slurm[rule].get("slurm_partition") == "gpu"} == set(kubernetes)
    assert set(kubernetes) <= BUILDS


@pytest.mark.workflow
def test_a_training_on_several_gpus_and_nodes_of_slurm(tmp_path):
    """The lines that the profile has as comments, without their marks."""
    write_config(tmp_path, TINY | {"device": "cuda", "threads": {"retrain": 8}})
    for name, comment in (("one", "Four GPUs"), ("several", "Two nodes")):
        profile = read_profile("slurm")
        profile["set-resources"]["retrain"] |= profile_lines(comment)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(profile))
    more = ("--cores", "8", "--resources", "gpu=8", "--profile")
    job = first(planned(tmp_path, *more, "one"), "retrain")
    assert job.command.startswith("torchrun --standalone --nproc-per-node 4 -m tenas.cli retrain ")
    assert " --threads 2 --device cuda " in job.command
    # All four of one node: SLURM would spread them.
    assert (job.resources["gpu"], job.resources["nodes"], job.resources["mem_mb"]) == ("4", "1", "64000")
    job = first(planned(tmp_path, *more, "several"), "retrain")
    start = (
        "srun --kill-on-bad-exit=1 --nodes 2 --ntasks 2 --cpus-per-task 8 bash -c 'exec torchrun"
        ' --local-addr "$(hostname -I | cut -d " " -f 1)" "$@"\' torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d '
    )
    assert job.command.startswith(start)
    assert " --threads 2 --device cuda " in job.command
    # Four on each node, and not seven and one.
    assert "--gpus-per-node=4 --ntasks-per-node=1" in job.resources["slurm_extra"]


@pytest.mark.workflow
def test_a_job_that_runs_out_of_memory_gets_more(tmp_path):
    """The profile's memory, made small; the limit is the kernel's, so torch fails for real."""
    root = copy_repository(tmp_path)
    write_config(root, changed(search=FUNNEL["runs"]["funnel"]["search"]))
    rules = root / "workflow/rules/search.smk"
    rules.write_text(rules.read_text().replace('"tenas score ', '"ulimit -v {resources.mem_mb}000; tenas score '))
    memory = read_profile("slurm")["set-resources"]["score"]["mem_mb"].replace("8000", "800")
    target = "results/digits/seed0/round1/scores/1.csv"
    options = ("--set-resources", f"score:mem_mb={memory}", "--retries", "5")
    run = snakemake(root, target, *options, root=root)
    output = succeed(run)
    tried = [
        int(found)
        for found in re.findall(r"^localrule score:\n(?:    .*\n)*?    resources: .*?mem_mb=(\d+)", output, re.MULTILINE)
    ]
    assert len(tried) > 1
    assert tried == [800 * 2**attempt for attempt in range(len(tried))]
    assert (tmp_path / target).exists()


@pytest.mark.workflow
@pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_kubernetes"), reason="the Kubernetes plugin isn't installed"
)
def test_pods_get_what_their_jobs_need(tmp_path):
    """With a folder as storage: a dry run asks for what is there, and there is no S3 here."""
    write_config(tmp_path, TINY | {"device": "cuda"})
    store = tmp_path / "store"
    store.mkdir()
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", store)
    jobs = planned(tmp_path, "--profile", ROOT / "profiles/kubernetes", *storage)
    for rule in ("score", "retrain"):
        given = first(jobs, rule).resources
        assert (given["gpu"], given["gpu_manufacturer"]) == ("1", "nvidia")
        assert int(given["mem_mb"]) >= 4000
