# The configuration, checked before anything else is done, and what the rules ask of it.
import json
import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import available_cpu_count

from tenas import layout
from tenas.code import code_digest
from tenas.config import load_config
from tenas.errors import TenasError
from tenas.machine import has_gpu, processors
from tenas.references import is_reference
from tenas.report.beside import ranked_round
from tenas.report.claims import configurations_of, read_claims, runs_of
from tenas.search.made_by import measuring_code, ranking_code, space_modules, stage_code
from tenas.settings.search import schedule
from tenas.spaces import get_space

try:
    CONFIG = load_config(config)
except TenasError as error:
    raise WorkflowError(str(error)) from None
RUNS = CONFIG["runs"]
STUDIES = CONFIG["studies"]
# Kinds of rounds that end with a mask.
PRUNES = ("operators", "edges")

# The `tenas` of the environment that Snakemake itself runs in, whether that is activated or not.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

# `cores: all` counts the processors of the machine, and not how many of them a container has by its quota.
if workflow.is_main_process and workflow.resource_settings.cores == available_cpu_count() > processors():
    workflow.global_resources["_cores"] = workflow.resource_settings.cores = processors()

# A job that its cluster stops is told so by a signal, to all of its processes: the shell has to wait for what a training still
# writes.
shell.prefix("set -euo pipefail; trap : TERM USR1; ")


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
    place=r"[1-9]\d*",


def dataset_of(run):
    return CONFIG["datasets"][RUNS[run]["dataset"]]


def file_of(dataset):
    """A data set that is one file is an input: what reads it runs again when it changes. Folders and downloads aren't watched."""
    path = CONFIG["datasets"][dataset].get("path")
    return [path] if path and Path(path).is_file() else []


def of_run(pattern):
    """The file of a pattern of the layout, of the run, seed and round that the wildcards say."""
    return lambda wildcards: layout.results(pattern).format(**wildcards)


def prepared(name, of=RUNS):
    """A file of the prepared data set of a run, or of a study."""
    return lambda wildcards: f"data/{of[wildcards[0]]['dataset']}/{name}"


@cache
def rounds(run):
    """The schedule of a run's search, known beforehand: it makes the graph of jobs a static one."""
    return schedule(RUNS[run]["settings"])


def round_of(wildcards, *kinds):
    """The round of a job. Raises WorkflowError where the run has none of that number, or one of another kind."""
    number, found = int(wildcards.round), rounds(wildcards.run)
    if number > len(found):
        raise WorkflowError(f"The run {wildcards.run} has no round {number}; its rounds are 1 to {len(found)}.")
    round = found[number - 1]
    if kinds and round.stage not in kinds:
        raise WorkflowError(
            f"Round {number} of the run {wildcards.run} is one of {round.stage}, not of {' or '.join(kinds)}."
        )
    return round


def entry(run, number):
    """The settings of a round."""
    return RUNS[run]["settings"]["rounds"][number - 1]


def entry_of(wildcards):
    return entry(wildcards.run, round_of(wildcards).number)


def state_after(run, seed, number):
    """What a round has left of a search; round 0 is its start."""
    stage = rounds(run)[number - 1].stage if number else "operators"
    return layout.results(layout.STATE[stage]).format(run=run, seed=seed, round=number)


def state_before(*kinds):
    """An input: what the round before has left, for a rule that is of rounds of these kinds."""
    return lambda wildcards: state_after(wildcards.run, wildcards.seed, round_of(wildcards, *kinds).number - 1)


def subjects_of(wildcards):
    """What a round measures: the mask before it, or its sample of cells."""
    round = round_of(wildcards, *PRUNES, "cells")
    if int(wildcards.shard) > shards_of(wildcards):
        raise WorkflowError(f"Round {round.number} of the run {wildcards.run} has {shards_of(wildcards)} shards.")
    if round.stage == "cells":
        return layout.results(layout.SAMPLE).format(**wildcards)
    return state_before()(wildcards)


def limits_of(wildcards):
    """The limits of a run as an input, where it has some."""
    return layout.results(layout.LIMITS).format(run=wildcards.run) if RUNS[wildcards.run]["settings"]["limits"] else []


@cache
def measured_shards(records, code, settings):
    """How many shards there were when one of them ended, measured with the same code and settings; None where none has ended."""
    for record in sorted(Path(records).glob("[0-9]*.json")):
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            if found["code"] == code and json.dumps(found["settings"]) == settings:
                return int(found["shard"].partition("/")[2])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def split(subjects, folder, code, settings):
    """Jobs that measurements are split into: as configured, but none without a subject. Where a shard has ended already, the
    others are split as it was: how work is split changes no result, and must not repeat any."""
    return measured_shards(folder, code, json.dumps(settings)) or min(CONFIG["shards"], subjects)


@cache
def score_code(run, number):
    return measuring_code("score", RUNS[run]["settings"], entry(run, number))


@cache
def shards(run, seed, number):
    """Shards of a round of a search. Trial 0 of a round that prunes is the whole network."""
    round = rounds(run)[number - 1]
    folder = Path(layout.results(layout.SCORES).format(run=run, seed=seed, round=number, shard=1)).parent
    subjects = round.trials + (round.stage in PRUNES)
    return split(subjects, folder, score_code(run, number), RUNS[run]["settings"])


def shards_of(wildcards):
    return shards(wildcards.run, wildcards.seed, round_of(wildcards).number)


def study_shards(study):
    cells = STUDIES[study]["cells"]
    folder = Path(layout.results(layout.STUDY_SCORES, "study").format(study=study, shard=1)).parent
    code = measuring_code("study_score", STUDIES[study], STUDIES[study])
    return split(CONFIG["shards"] if cells == "all" else cells, folder, code, STUDIES[study])


def scores(run, seed, number, pattern):
    """Of each shard of a round the scores, or their records."""
    return [
        layout.results(pattern).format(run=run, seed=seed, round=number, shard=shard)
        for shard in range(1, shards(run, seed, number) + 1)
    ]


def scores_of(pattern):
    """An input: ``scores`` of a job's round."""
    return lambda wildcards: scores(wildcards.run, wildcards.seed, round_of(wildcards).number, pattern)


def study_scores_of(wildcards, pattern=layout.STUDY_SCORES):
    return [
        layout.results(pattern, "study").format(study=wildcards.study, shard=shard)
        for shard in range(1, study_shards(wildcards.study) + 1)
    ]


def trainings(run, seed, number):
    """The metrics of a round's short trainings; none where they are looked up."""
    if entry(run, number)["column"] is not None:
        return []
    return [
        layout.results(layout.TRAINING_METRICS).format(run=run, seed=seed, round=number, place=place)
        for place in range(1, rounds(run)[number - 1].trials + 1)
    ]


def trainings_of(wildcards):
    return trainings(wildcards.run, wildcards.seed, round_of(wildcards, "training").number)


def tables(run, seed):
    """What each round has found: the ranking of its trials or cells."""
    return [
        layout.results(layout.TABLE[round.stage]).format(run=run, seed=seed, round=round.number)
        for round in rounds(run)
    ]


def code_of(stage, networks=False, images=False):
    """A parameter: the digest of the code that a stage of a search runs, with its space.

    ``images``: whether it reads the data set itself, for which a source of one's own is part of its code.
    """

    def code(wildcards):
        own = dataset_of(wildcards.run)["source"]
        digest = stage_code(stage, RUNS[wildcards.run]["settings"], networks=networks)
        return [digest, code_digest(own)] if images and is_reference(own) else digest

    return code


def index_of(space):
    """The table of a space, as commands take it: a file, `builtin` or `none`."""
    return CONFIG["benchmark"].get(space) or "none"


def index_file(space):
    """It as an input, where it is a file of the user's. The built-in one is the package's own, whose checksum is in the code."""
    index = index_of(space)
    if index in ("builtin", "none"):
        return []
    if not Path(index).is_file():
        raise WorkflowError(
            f"There is no table {index}, which 'benchmark' has for {space}: give a CSV or Parquet file, builtin, or null for none."
        )
    return [index]


def space_of(run):
    return RUNS[run]["settings"]["space"]


def records_of(run, seed):
    """All that the summary of a seed says of its search: the records of its measurements, the tables of its rounds."""
    found = tables(run, seed)
    for round in rounds(run):
        if round.stage == "training":
            found += trainings(run, seed, round.number)
        else:
            found += scores(run, seed, round.number, layout.SCORES_RECORD)
    return found


def results_of(run):
    """What the seeds of a run have come to."""
    patterns = [layout.GENOTYPE, layout.LOOKUP] + ([layout.RETRAIN_METRICS] if RUNS[run]["retrain"] else [])
    return [layout.results(pattern).format(run=run, seed=seed) for seed in RUNS[run]["seeds"] for pattern in patterns]


def states_of(run, seed):
    """What the rounds of a seed have drawn and left, which is drawn among all cells of a table."""
    drawn = [
        layout.results(layout.SAMPLE).format(run=run, seed=seed, round=round.number)
        for round in rounds(run)
        if round.stage == "cells"
    ]
    return drawn + [state_after(run, seed, round.number) for round in rounds(run)]


def histories_of(run):
    """The trainings of a run, epoch by epoch: short ones, and the retraining."""
    short = [
        metrics.replace(Path(layout.TRAINING_METRICS).name, Path(layout.TRAINING_HISTORY).name)
        for seed in RUNS[run]["seeds"]
        for round in rounds(run)
        if round.stage == "training"
        for metrics in trainings(run, seed, round.number)
    ]
    long = [layout.results(layout.HISTORY).format(run=run, seed=seed) for seed in RUNS[run]["seeds"]]
    return short + (long if RUNS[run]["retrain"] else [])


def figures(run):
    """What belongs to a run in the report, and isn't an input of its summary."""
    seeds = [layout.results(layout.DRAWING).format(run=run, seed=seed) for seed in RUNS[run]["seeds"]]
    return [layout.results(layout.OVERVIEW).format(run=run), *seeds]


def gpus_of_a_job(measures):
    """1 when jobs are to run on a GPU, 0 when on the CPU: then they must not queue for a GPU that isn't there.

    `auto` is a GPU where one is seen and the job trains; what measures is faster on the processors (docs/gpu.md). Torch would
    know better whether the GPU can be used, but importing it takes seconds, and this is read by every command.
    """
    if CONFIG["device"] == "auto":
        return int(not measures and has_gpu())
    return int(CONFIG["device"] == "cuda")


def device_of(wildcards, resources):
    """A parameter: the device that a job was given, and never `auto`, by which it might take one that is somebody else's."""
    return "cuda" if CONFIG["device"] != "cpu" and resources.get("gpu", 0) else "cpu"


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
    # A node that fails ends the others, which would wait for it; and each says the address that the cluster knows it by, for its
    # own name may mean 127.0.1.1 to it.
    return (
        f"{resources.mpi} --kill-on-bad-exit=1 --nodes {resources.get('nodes', 1)} --ntasks {resources.tasks}"
        f' --cpus-per-task {threads} bash -c \'exec torchrun --local-addr "$(hostname -I | cut -d " " -f 1)" "$@"\' torchrun'
        f" --nnodes {resources.tasks} --nproc-per-node {local} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
        " --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 10000)) -m tenas.cli"
    )


@cache
def tested():
    """The runs and studies that the claims ask for and the configuration has."""
    return [run for run in runs_of(read_claims(CONFIG["claims"])) if run in RUNS or run in STUDIES]


def beside(run):
    """What says what a run is to be set beside: its settings and limits, the table, its images, and what it would have found
    without its trainings."""
    seeds, ranked = RUNS[run]["seeds"], ranked_round(RUNS[run]["settings"])
    found = [layout.results(layout.SEARCH).format(run=run), *index_file(space_of(run))]
    found += [layout.results(layout.LIMITS).format(run=run)] if RUNS[run]["settings"]["limits"] else []
    found += [layout.results(layout.LOOKUP).format(run=run, seed=seed) for seed in seeds]
    found += [layout.results(layout.SCORES_RECORD).format(run=run, seed=min(seeds), round=1, shard=1)]
    if ranked is not None:
        found += [layout.results(layout.SHORTLIST).format(run=run, seed=seed, round=ranked) for seed in seeds]
    return found


def claims_code():
    """The digest of the code behind the claims, with the spaces of the runs that test them."""
    spaces = [get_space(space_of(run)) for run in tested() if run in RUNS] if CONFIG["claims"] else []
    return code_digest("tenas.stages.claims", *dict.fromkeys(name for space in spaces for name in space_modules(space)))


def exports(run):
    """The trained networks of a seed in forms that other programs read."""
    names = ("network.pt2", "network.onnx", "export.json")
    return [f"export/{name}" for name in names] if RUNS[run]["retrain"] else []
