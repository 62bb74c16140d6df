# The configuration, checked before anything else is done, and what the rules ask of it.
import json
import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from tenas.config import load_config
from tenas.errors import TenasError
from tenas.provenance import code_digest
from tenas.report.claims import read_claims, runs_of
from tenas.spaces import get_space

try:
    CONFIG = load_config(config)
except TenasError as error:
    raise WorkflowError(str(error)) from None
RUNS = CONFIG["runs"]
STUDIES = CONFIG["studies"]

# For each rule, the parts of the package that it runs. An edit there makes it run again; Snakemake itself would not notice.
# Left out are the command line and what only reads, writes and reports (files, locks, errors, provenance, settings):
# they don't change a result. tests/test_workflow.py holds this table to the imports.
CODE = {
    "prepare": ["data"],
    "mask": ["search/stages.py", "spaces"],
    "score": [
        "data/prepared.py",
        "device.py",
        "measures",
        "networks",
        "search/partial.py",
        "search/score.py",
        "search/seeds.py",
        "search/stages.py",
        "search/table.py",
        "spaces",
    ],
    "prune": ["search/prune.py", "search/stages.py", "search/table.py", "spaces"],
    "genotype": ["search/draw.py", "search/stages.py", "spaces"],
    "benchmark": [
        "benchmark/__init__.py",
        "benchmark/builtin.py",
        "benchmark/index.py",
        "benchmark/reading.py",
        "benchmark/topology.py",
        "spaces",
    ],
    "table_search": ["benchmark", "search/seeds.py", "spaces"],
    "retrain": ["data", "device.py", "networks", "retrain", "spaces"],
    "export": ["export", "networks", "retrain/stored.py", "spaces"],
    "plot_rankings": ["report/rankings.py"],
    "summary": ["report/summary.py"],
    "claims": ["report/claims.py", "spaces"],
    "study_cells": ["benchmark", "search/seeds.py", "spaces", "study/stages.py", "study/table.py"],
    "study_score": [
        "benchmark/index.py",
        "data/prepared.py",
        "device.py",
        "measures",
        "networks",
        "search/score.py",
        "search/seeds.py",
        "search/stages.py",
        "search/table.py",
        "spaces",
        "study/score.py",
        "study/stages.py",
        "study/table.py",
    ],
    "correlate": [
        "benchmark",
        "search/table.py",
        "spaces",
        "study/correlate.py",
        "study/figures.py",
        "study/stages.py",
        "study/table.py",
    ],
}

# The `tenas` of the environment that Snakemake itself runs in, whether that is activated or not.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def any_of(names):
    """A pattern of these names and of nothing else, where there are none too: an empty pattern would let anything pass."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    run=any_of(RUNS),
    study=any_of(STUDIES),
    dataset=any_of(CONFIG["datasets"]),
    seed=r"\d+",
    round=r"[1-9]\d*",
    shard=r"[1-9]\d*",


def study_shards(study):
    """Jobs that a study is split into: as configured, but none without a cell."""
    cells = STUDIES[study]["cells"]
    return CONFIG["shards"] if cells == "all" else min(CONFIG["shards"], cells)


def dataset_of(run):
    return CONFIG["datasets"][RUNS[run]["dataset"]]


def file_of(dataset):
    """A data set that is one file is an input: what reads it runs again when it changes. Folders and downloads aren't watched."""
    path = CONFIG["datasets"][dataset].get("path")
    return [path] if path and Path(path).is_file() else []


@cache
def rounds(run):
    """The schedule of a run's search, known beforehand: it makes the graph of jobs a static one."""
    settings = RUNS[run]["settings"]
    return get_space(settings["space"]).rounds(settings["exclude"], settings["prune"])


def shards(wildcards):
    """Jobs that a round is split into: as configured, but none without a trial to score (trial 0 is the whole network)."""
    return min(CONFIG["shards"], rounds(wildcards.run)[int(wildcards.round) - 1].trials + 1)


def mask_before(wildcards):
    return f"results/{wildcards.run}/seed{wildcards.seed}/round{int(wildcards.round) - 1}/mask.json"


def index_of(space):
    """The benchmark of a space, as commands take it: a file, `builtin` or `none`."""
    return CONFIG["benchmark"].get(space) or "none"


def index_file(space):
    """It as an input, where it is a file of the user's. The built-in one is the package's own: CODE has its checksum."""
    index = index_of(space)
    return [] if index in ("builtin", "none") else [index]


def space_of(run):
    return RUNS[run]["settings"]["space"]


def figures(run):
    """What belongs to a seed of a run in the report, and isn't an input of its summary."""
    return ["genotype.svg", "rankings.svg"] + (["retrain/history.csv"] if RUNS[run]["retrain"] else [])


def gpus_of_a_job():
    """1 when score and retrain are to run on a GPU, 0 when on the CPU: then they must not queue for a GPU that isn't there.

    `auto` looks for device files. Torch would know better, but importing it takes seconds, and this is read by every command.
    """
    if CONFIG["device"] != "auto":
        return int(CONFIG["device"] == "cuda")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return int(visible not in ("", "-1"))
    return int(any(Path(os.devnull).parent.glob("nvidia[0-9]*")))


def processes(resources):
    """Processes of a training on one machine: one a GPU. A job on several nodes has a task, and its share of the GPUs, on each."""
    return max(1, resources.get("gpu", 0) // (resources.tasks if "mpi" in resources.keys() else 1))


def launched(resources, threads):
    """The command line, once for each of the GPUs that a job was given: with more than one, torchrun starts a process for each.

    Where a profile gives the job `mpi`, its launcher (srun) starts a torchrun on each of its nodes; they meet on the first
    one, where this command itself runs, at a port that goes by the job's number so that two jobs can meet on one node.
    """
    local = processes(resources)
    if "mpi" not in resources.keys():
        return f"torchrun --standalone --nproc-per-node {local} -m tenas.cli" if local > 1 else "tenas"
    return (
        f"{resources.mpi} --nodes {resources.get('nodes', 1)} --ntasks {resources.tasks} --cpus-per-task {threads}"
        f" torchrun --nnodes {resources.tasks} --nproc-per-node {local} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
        " --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 10000)) -m tenas.cli"
    )


@cache
def tested():
    """The runs and studies that the claims ask for and the configuration has."""
    return [run for run in runs_of(read_claims(CONFIG["claims"])) if run in RUNS or run in STUDIES]


def exports(run):
    """The trained networks of a seed in forms that other programs read."""
    names = ("network.pt2", "network.onnx", "export.json")
    return [f"export/{name}" for name in names] if RUNS[run]["retrain"] else []
