# The checked configuration, and functions of it for the rules.
import base64
import json
import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import available_cpu_count

from tenas import layout
from tenas.code import code_digest, is_reference
from tenas.config import load_config
from tenas.data.prepared import read_card
from tenas.data.sources import load
from tenas.errors import TenasError
from tenas.machine import has_gpu, processors
from tenas.report.beside import ranked_round
from tenas.report.claims import configurations_of, read_claims, runs_of
from tenas.search.made_by import measuring_code, ranking_code, space_modules, stage_code, training_code
from tenas.search.origins import images_in
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

# Jobs use the `tenas` of Snakemake's own environment, even if that is not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

# `cores: all` counts the processors of the machine; a container may have a smaller quota.
if workflow.is_main_process and workflow.resource_settings.cores == available_cpu_count() > processors():
    workflow.global_resources["_cores"] = workflow.resource_settings.cores = processors()

# A cluster signals all processes of a job that it stops: the shell must ignore the signal, and wait until the training has written
# its checkpoint.
shell.prefix("set -euo pipefail; trap : TERM USR1; ")


def any_of(names):
    """Regular expression that matches exactly these names; without names it matches nothing."""
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


def retraining_of(run):
    """Settings of the retraining of a run's cells."""
    if RUNS[run]["retrain"] is None:
        raise WorkflowError(f"The run {run} retrains nothing: its 'retrain' is null.")
    return {"preset": RUNS[run]["retrain"], "dataset": dataset_of(run), **RUNS[run]["retrain_settings"]}


def file_of(dataset):
    """File of a data set, as an input: its jobs run again when it changes. For folders see `images_of`; downloads do not change."""
    path = CONFIG["datasets"][dataset].get("path")
    if path and CONFIG["datasets"][dataset]["source"] == "prepared":
        path = f"{path}/{layout.CARD}"
    card = Path(layout.prepared(layout.CARD).format(dataset=dataset))
    # A file that is gone counts as unchanged, too.
    return [path] if path and (Path(path).is_file() or (card.is_file() and not Path(path).exists())) else []


@cache
def images_of(dataset):
    """Parameter: digests of the images of a folder (`Files.digest`), so that it is prepared again when they change.

    A folder that is gone counts as unchanged: results can be looked at without it.
    """
    entry = CONFIG["datasets"][dataset]
    if entry["source"] != "folder" and not (is_reference(entry["source"]) and os.path.isdir(entry["path"] or "")):
        return None
    card = Path(layout.prepared(layout.CARD).format(dataset=dataset))
    if card.is_file() and not Path(entry["path"]).exists():
        return read_card(card)[0].get("parts_sha256")
    try:
        return load(entry)[0].digests()
    except TenasError as error:
        return str(error)  # the job will say so


def of_run(pattern):
    """Input or output: the file of a pattern of the layout, for the wildcards of a job."""
    return lambda wildcards: layout.results(pattern).format(**wildcards)


def prepared(name, of=RUNS):
    """A file of the prepared data set of a run, or of a study."""
    return lambda wildcards: f"data/{of[wildcards[0]]['dataset']}/{name}"


@cache
def rounds(run):
    """Schedule of a run's search: known beforehand, so the graph of jobs is static."""
    return schedule(RUNS[run]["settings"])


def round_of(wildcards, *kinds):
    """Round of a job. Raises WorkflowError if the run has no round of that number, or one of another kind."""
    number, found = int(wildcards.round), rounds(wildcards.run)
    if number > len(found):
        raise WorkflowError(f"The run {wildcards.run} has no round {number}; its rounds are 1 to {len(found)}.")
    round = found[number - 1]
    if kinds and round.stage not in kinds:
        raise WorkflowError(
            f"Round {number} of the run {wildcards.run} is a round of {round.stage}, not of {' or '.join(kinds)}."
        )
    return round


def entry(run, number):
    """The settings of a round."""
    return RUNS[run]["settings"]["rounds"][number - 1]


def entry_of(wildcards):
    return entry(wildcards.run, round_of(wildcards).number)


def state_after(run, seed, number):
    """File of the state after a round; round 0 is the start of the search."""
    stage = rounds(run)[number - 1].stage if number else "operators"
    return layout.results(layout.STATE[stage]).format(run=run, seed=seed, round=number)


def state_before(*kinds):
    """Input: file of the state after the previous round, for rules of rounds of these kinds."""
    return lambda wildcards: state_after(wildcards.run, wildcards.seed, round_of(wildcards, *kinds).number - 1)


def subjects_of(wildcards):
    """Input: the subjects of a round, the mask before it or its sample of cells."""
    round = round_of(wildcards, *PRUNES, "cells")
    if int(wildcards.shard) > shards_of(wildcards):
        raise WorkflowError(f"Round {round.number} of the run {wildcards.run} has {shards_of(wildcards)} shards.")
    if round.stage == "cells":
        return layout.results(layout.SAMPLE).format(**wildcards)
    return state_before()(wildcards)


def limits_of(wildcards):
    """Input: the limits of a run; empty if it has none."""
    return layout.results(layout.LIMITS).format(run=wildcards.run) if RUNS[wildcards.run]["settings"]["limits"] else []


@cache
def measured_shards(records, code, settings):
    """Number of shards in the record of a finished shard with the same code and settings; None without one."""
    for record in sorted(Path(records).glob("[0-9]*.json")):
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            if found["code"] == code and json.dumps(found["settings"]) == settings:
                return int(found["shard"].partition("/")[2])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def split(subjects, folder, code, settings):
    """Number of shards: as configured, at most one per subject.

    If a shard is finished, its number of shards is kept: the number does not affect results, so changing it must not repeat work.
    """
    return measured_shards(folder, code, json.dumps(settings)) or min(CONFIG["shards"], subjects)


@cache
def score_code(run, number):
    return measuring_code("score", RUNS[run]["settings"], entry(run, number))


@cache
def shards(run, seed, number):
    """Number of shards of a round of a search. Trial 0 of a round that prunes is the whole network."""
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
    """Scores of all shards of a round, or their records, by ``pattern``."""
    return [
        layout.results(pattern).format(run=run, seed=seed, round=number, shard=shard)
        for shard in range(1, shards(run, seed, number) + 1)
    ]


def scores_of(pattern):
    """Input: ``scores`` of a job's round."""
    return lambda wildcards: scores(wildcards.run, wildcards.seed, round_of(wildcards).number, pattern)


def study_scores_of(wildcards, pattern=layout.STUDY_SCORES):
    return [
        layout.results(pattern, "study").format(study=wildcards.study, shard=shard)
        for shard in range(1, study_shards(wildcards.study) + 1)
    ]


def trainings(run, seed, number):
    """Metrics of a round's short trainings; empty if they are looked up."""
    if entry(run, number)["column"] is not None:
        return []
    return [
        layout.results(layout.TRAINING_METRICS).format(run=run, seed=seed, round=number, place=place)
        for place in range(1, rounds(run)[number - 1].trials + 1)
    ]


def trainings_of(wildcards):
    return trainings(wildcards.run, wildcards.seed, round_of(wildcards, "training").number)


def tables(run, seed):
    """Tables of all rounds: the rankings of trials, cells or finalists."""
    return [
        layout.results(layout.TABLE[round.stage]).format(run=run, seed=seed, round=round.number)
        for round in rounds(run)
    ]


def code_of(stage, networks=False, images=False):
    """Parameter: digest of the code of a stage of a search, including its space.

    ``images``: whether the stage reads the data set itself; then the code of a user-defined source is included.
    """

    def code(wildcards):
        own = dataset_of(wildcards.run)["source"]
        digest = stage_code(stage, RUNS[wildcards.run]["settings"], networks=networks)
        return [digest, code_digest(own)] if images and is_reference(own) else digest

    return code


def index_of(space):
    """Table of a space as an option of commands: a file, `builtin` or `none`."""
    return CONFIG["benchmark"].get(space) or "none"


def index_file(space):
    """Input: table of a space if it is a user's file. The checksum of the built-in table is part of the code digest."""
    index = index_of(space)
    if index in ("builtin", "none"):
        return []
    if not Path(index).is_file():
        raise WorkflowError(
            f"There is no table {index}, which 'benchmark' names for {space}: give a CSV or Parquet file, builtin, or null for none."
        )
    return [index]


def space_of(run):
    return RUNS[run]["settings"]["space"]


def records_of(run, seed):
    """Input: files of a seed's search that its summary reads: records of measurements, tables of rounds."""
    found = tables(run, seed)
    for round in rounds(run):
        if round.stage == "training":
            found += trainings(run, seed, round.number)
        else:
            found += scores(run, seed, round.number, layout.SCORES_RECORD)
    return found


def results_of(run):
    """Results of the seeds of a run."""
    patterns = [layout.GENOTYPE, layout.LOOKUP] + ([layout.RETRAIN_METRICS] if RUNS[run]["retrain"] else [])
    return [layout.results(pattern).format(run=run, seed=seed) for seed in RUNS[run]["seeds"] for pattern in patterns]


def states_of(run, seed):
    """Samples and decisions of the rounds of a seed, for the figure of all cells of a table."""
    drawn = [
        layout.results(layout.SAMPLE).format(run=run, seed=seed, round=round.number)
        for round in rounds(run)
        if round.stage == "cells"
    ]
    return drawn + [state_after(run, seed, round.number) for round in rounds(run)]


def histories_of(run):
    """Histories of the trainings of a run: short ones, and the retraining."""
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
    """Files of a run in the report that are no inputs of its summary."""
    seeds = [layout.results(layout.DRAWING).format(run=run, seed=seed) for seed in RUNS[run]["seeds"]]
    return [layout.results(layout.OVERVIEW).format(run=run), *seeds]


def gpus_of_a_job(measures):
    """Number of GPUs per job: 1, or 0 on the CPU, so that jobs do not queue for a missing GPU.

    `auto` is a GPU for a job that trains, if one is visible; measures are faster on the CPU (docs/gpu.md). Torch could also check
    that the GPU can be used, but its import would cost every command seconds.
    """
    if CONFIG["device"] == "auto":
        return int(not measures and has_gpu())
    return int(CONFIG["device"] == "cuda")


def device_of(wildcards, resources):
    """Parameter: the device given to a job, never `auto`, with which it could take the GPU of another job."""
    return "cuda" if CONFIG["device"] != "cpu" and resources.get("gpu", 0) else "cpu"


def processes(resources):
    """Processes of a training per machine, one per GPU. A job on several nodes has one task per node, with its share of the GPUs."""
    return max(1, resources.get("gpu", 0) // (resources.tasks if "mpi" in resources.keys() else 1))


def launched(resources, threads):
    """Beginning of a training's command line: with several GPUs, torchrun starts one process per GPU.

    If a profile sets `mpi` for the job, that launcher (srun) starts torchrun on each of its nodes. They rendezvous on the first
    node, where this command runs, at a port derived from the job's number, so that jobs on one node do not collide.
    """
    local = processes(resources)
    if "mpi" not in resources.keys():
        return f"torchrun --standalone --nproc-per-node {local} -m tenas.cli" if local > 1 else "tenas"
    # A failed node ends the others, which would wait for it. Each node passes its address in the cluster, as its own name may
    # resolve to 127.0.1.1 locally.
    return (
        f"{resources.mpi} --kill-on-bad-exit=1 --nodes {resources.get('nodes', 1)} --ntasks {resources.tasks}"
        f' --cpus-per-task {threads} bash -c \'exec torchrun --local-addr "$(hostname -I | cut -d " " -f 1)" "$@"\' torchrun'
        f" --nnodes {resources.tasks} --nproc-per-node {local} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
        " --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 10000)) -m tenas.cli"
    )


@cache
def tested():
    """Runs and studies of the configuration that claims need."""
    return [run for run in runs_of(read_claims(CONFIG["claims"])) if run in RUNS or run in STUDIES]


def beside(run):
    """Input: files that determine the comparisons of a run: settings, limits, table, images, results without its trainings."""
    seeds, ranked = RUNS[run]["seeds"], ranked_round(RUNS[run]["settings"])
    found = [layout.results(layout.SEARCH).format(run=run), *index_file(space_of(run))]
    found += [layout.results(layout.LIMITS).format(run=run)] if RUNS[run]["settings"]["limits"] else []
    found += [layout.results(layout.LOOKUP).format(run=run, seed=seed) for seed in seeds]
    found += [layout.results(layout.SCORES_RECORD).format(run=run, seed=min(seeds), round=1, shard=1)]
    if ranked is not None:
        found += [layout.results(layout.SHORTLIST).format(run=run, seed=seed, round=ranked) for seed in seeds]
    return found


def claims_code():
    """Parameter: digest of the code of the claims, including the spaces of the runs that test them."""
    spaces = [get_space(space_of(run)) for run in tested() if run in RUNS] if CONFIG["claims"] else []
    return code_digest("tenas.stages.claims", *dict.fromkeys(name for space in spaces for name in space_modules(space)))


def exports(run):
    """Exports of a seed's trained network."""
    names = ("network.pt2", "network.onnx", "export.json")
    return [f"export/{name}" for name in names] if RUNS[run]["retrain"] else []


def recorded(file, *keys):
    """A value of a record; None if the file is missing or damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return value
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_of(file):
    """Snakemake's notes of how a file was made; it splits names of more than 200 characters."""
    return Path(".snakemake/metadata", base64.b64encode(str(file).encode()).decode())


def is_noted(file):
    """Whether Snakemake has notes of how a file was made."""
    # It may keep its notes in a database.
    return len(note_of(file).name) > 200 or note_of(file).exists() or any(Path().glob(".snakemake/*.db"))


def is_replaced(file, settings):
    """Whether a file of settings is another one than Snakemake's notes say that it made, of the present ``settings``."""
    of_settings = repr(json.dumps(settings)) in (recorded(note_of(file), "params") or ())
    return of_settings and recorded(file) not in (None, settings)


def expected_of(run):
    """Records of a run as this configuration and code would make them: (file, what stands there, what should)."""
    of, folder = RUNS[run], Path("results", run)
    card = Path(layout.prepared(layout.CARD).format(dataset=of["dataset"]))
    yield folder / layout.SEARCH, recorded(folder / layout.SEARCH), of["settings"]
    yield folder / layout.LIMITS, recorded(folder / layout.LIMITS, "made_by", "settings"), of["settings"]
    if of["retrain"]:
        yield folder / layout.RETRAIN, recorded(folder / layout.RETRAIN), retraining_of(run)
    yield card, recorded(card, "provenance", "settings"), dataset_of(run)
    if (images := images_of(of["dataset"])) is not None:
        yield card, recorded(card, "parts_sha256"), images
    space = get_space(of["settings"]["space"])
    for pattern in (f"{layout.SEED}/retrain/metrics.json", layout.TRAINING_METRICS):
        for file in sorted(folder.glob(pattern.format(seed="*", round="*", place="*"))):
            yield file, recorded(file, "provenance", "code"), training_code(space)
    for round in rounds(run):
        files = folder.glob(layout.SCORES_RECORD.format(seed="*", round=round.number, shard="*"))
        for file in sorted(files) if round.stage != "training" else []:
            yield file, recorded(file, "code"), score_code(run, round.number)
            # Without images nothing says that they are those of the configuration.
            _, images = images_in({"inputs": recorded(file, "inputs")}) or (None, None)
            yield file, images, recorded(card, "sha256") or ""


def expected_of_study(study):
    """The same of a study."""
    folder, card = Path("results", study), Path(layout.prepared(layout.CARD).format(dataset=STUDIES[study]["dataset"]))
    yield folder / layout.STUDY, recorded(folder / layout.STUDY), STUDIES[study]
    yield card, recorded(card, "provenance", "settings"), CONFIG["datasets"][STUDIES[study]["dataset"]]
    for file in sorted(folder.glob(layout.STUDY_SCORES_RECORD.format(shard="*"))):
        yield file, recorded(file, "code"), measuring_code("study_score", STUDIES[study], STUDIES[study])


def check_copied():
    """Raise WorkflowError for results that are not of this configuration and code, where Snakemake cannot know that.

    It compares settings and code with its notes in .snakemake/, and never the files with them: those of another commit may be
    there (dvc checkout). Without notes (results that were copied, or made by `tenas search`) it takes what is there. DVC compares
    by itself, and runs one rule after another.
    """
    plain = {
        "--allowed-rules",
        "--unlock",
        "--touch",
        "-t",
        "--report",
        "--summary",
        "--list-rules",
        "-l",
        "--lint",
        "--cleanup-metadata",
        "--forceall",
        "-F",
    }
    if not workflow.is_main_process or plain & set(sys.argv):
        return
    for name in (*RUNS, *STUDIES):
        first = Path("results", name, layout.SEARCH if name in RUNS else layout.STUDY)
        if is_replaced(first, RUNS[name]["settings"] if name in RUNS else STUDIES[name]):
            raise WorkflowError(
                f"{first} is of other settings than Snakemake has noted (after dvc checkout, or --touch): bring the results of "
                f"these settings back, remove {first.parent}, or make all of it again (--forceall)."
            )
        if not first.exists() or is_noted(first):
            continue
        for file, found, expected in expected_of(name) if name in RUNS else expected_of_study(name):
            if found not in (None, expected):
                raise WorkflowError(
                    f"{file} is not of this configuration and code, and Snakemake has no notes of how {first.parent} was made: "
                    f"copy the folder .snakemake along with results, or remove {first.parent}"
                    f"{f' and {file.parent}' if first.parent not in file.parents else ''}."
                )


check_copied()
