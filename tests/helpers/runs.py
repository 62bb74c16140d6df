"""What the tests of the workflow share: commands run as a user runs them, configurations small enough, and what they lead to."""

import contextlib
import copy
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from helpers import ROOT
from tenas import layout
from tenas.config import load_config
from tenas.search.made_by import space_modules
from tenas.settings.search import schedule
from tenas.spaces import get_space

# A whole run in well under a minute: few and small measurements, one epoch of a very small network.
TINY = {
    "shards": 2,
    "device": "cpu",
    # Two threads of a training beside other tests would spend most of their time waiting for each other.
    "threads": {"score": 1, "retrain": 1},
    "datasets": {"digits": {"source": "digits", "images": 200}},
    "runs": {
        "digits": {
            "space": "nas-bench-201",
            "dataset": "digits",
            "preset": "pruning",
            "search": {
                "measures": {
                    "ntk_condition_number": {"repeats": 2, "batch": 4},
                    "linear_regions": {"repeats": 2, "count": 200},
                }
            },
            "limits": {},
            "trainings": None,
            "seeds": [0],
            "retrain": "digits",
            "retraining": {"channels": 2, "epochs": 1, "batch": 128},
        }
    },
}

# The run of config/config.yaml, small: rounds of cells, and one of short trainings.
_FEW = {"repeats": 1, "batch": 4}
DEFAULT = TINY | {
    # Each process that scores takes seconds to start, and many tests run all of this.
    "shards": 1,
    # More than a megabyte: Snakemake goes by the time of such a file, and by the content of smaller ones.
    "datasets": {"digits": {"source": "digits", "images": 400}},
    "runs": {
        "digits": TINY["runs"]["digits"]
        | {
            "preset": "default",
            "search": {
                "measures": {
                    "swap": dict(_FEW),
                    "naswot": dict(_FEW),
                    "synflow": dict(_FEW),
                    "ntk_condition_number": dict(_FEW),
                    "linear_regions": {"repeats": 1, "count": 200},
                },
                "rounds": {
                    "1": {"sample": 8, "keep": 5},
                    "2": {"keep": 2},
                    "3": {"keep": 2, "measures": {"ntk_condition_number": {"repeats": 2}}},
                    "4": {"training": {"epochs": 1}},
                },
            },
        }
    },
}

# A measurement of a few milliseconds.
ONCE = {"repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "pytorch", "redraw": True}
# Every kind of round that NAS-Bench-201 has, a limit, a study, and all that needs a table; ``write_table`` makes that.
FUNNEL = {
    "shards": 2,
    "device": "cpu",
    "threads": {"score": 1, "retrain": 1},
    "benchmark": {"nas-bench-201": "table.csv"},
    "claims": "claims.yaml",
    "table_search": {"budgets": [1, 20], "seeds": 3},
    "datasets": {"digits": {"source": "digits", "images": 200}},
    "runs": {
        "funnel": {
            "space": "nas-bench-201",
            "dataset": "digits",
            "preset": "pruning",
            "search": {
                "exclude": [],
                "rounds": [
                    {"kind": "operators", "times": 1, "change": "absolute", "measures": {"naswot": ONCE}},
                    {"kind": "cells", "sample": 12, "keep": 4, "measures": {"synflow": ONCE, "snip": ONCE}},
                    {"kind": "cells", "keep": 3, "measures": {"naswot": ONCE | {"repeats": 3}}},
                    {
                        "kind": "training",
                        "keep": 1,
                        "training": {"channels": 2, "cells": 1, "epochs": 1, "batch": 128, "validation": 0.2},
                    },
                ],
            },
            "limits": {"parameters": 0.5e6, "flops": "60%"},
            "seeds": [0],
        }
    },
    "studies": {
        "study": {
            "space": "nas-bench-201",
            "dataset": "digits",
            "cells": 12,
            "measures": {"naswot": ONCE, "snip": ONCE | {"repeats": 2}, "parameters": ONCE},
        }
    },
}
CLAIM = {"says": "It is so", "source": "Somewhere", "value": 1.0, "accuracy": "cifar10_test"}
COLUMNS = [f"{dataset}_{part}" for dataset in ("cifar10", "cifar100", "imagenet16") for part in ("valid", "test")]


# --- commands


def environment(**more: str) -> dict[str, str]:
    """That of a user: this environment's programs, nothing that the tests' own tools have set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE_", "PYTEST_", "CUDA_"))}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env | {"PYTHONPATH": str(ROOT)} | more


def call(*command: object, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    """Run a command of this environment, with stdout and stderr together in ``stdout``; never raises on its exit status."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workflow(root: Path = ROOT) -> tuple[object, ...]:
    return ("snakemake", "--snakefile", root / "Snakefile", "--cores", "2")


def snakemake(folder: Path, *arguments: object, root: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    """Run the workflow of the repository ``root`` with ``folder`` as its working directory."""
    return call(*workflow(root), *arguments, cwd=folder, **{"PYTHONPATH": str(root)} | more)


def traced(command: str, notes: Path) -> str:
    """A command of the package for a shell, whose calls are noted in a file (tracer.py)."""
    return f"{sys.executable} {ROOT / 'tests/helpers/tracer.py'} {notes} {command}"


def succeed(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stdout
    return result.stdout


def killed_when(folder: Path, seen: str, *command: object, after: float = 0.0, **more: str) -> None:
    """Start a command in ``folder``; SIGKILL to it and to all that it has started, once the file ``seen`` is there."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**more),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        started = time.monotonic()
        while not list(folder.glob(seen)):
            assert process.poll() is None, f"it ended before there was {seen}"
            assert time.monotonic() - started < 300
            time.sleep(0.02)
        time.sleep(after)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- folders


def write_config(folder: Path, config: Mapping) -> Path:
    path = folder / "config" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return path


def changed(config: Mapping = TINY, **changes: object) -> dict:
    """A configuration with other values of its only run."""
    config = copy.deepcopy(dict(config))
    (run,) = config["runs"].values()
    run |= changes
    return config


def profile_lines(comment: str) -> dict:
    """What profiles/slurm has as comments, for a retraining on several GPUs, below one that begins with ``comment``."""
    text = (ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"^    # {comment}.*\n((?:    # \w+: .*\n)+)", text, re.MULTILINE)
    found: dict = yaml.safe_load(re.sub("^    # ", "", lines, flags=re.MULTILINE))
    return found


def write_table(folder: Path) -> None:
    """A table of all cells of NAS-Bench-201 with made-up accuracies, and two claims: of the run ``funnel`` and of another."""
    archs = [genotype.arch for genotype in get_space("nas-bench-201").genotypes()]
    values = [",".join(str((place * 37 + i) % 1000 / 10) for i in range(len(COLUMNS))) for place in range(len(archs))]
    lines = [",".join(["arch", *COLUMNS]), *(f"{arch},{value}" for arch, value in zip(archs, values, strict=True))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    claims = {name: CLAIM | {"runs": [name]} for name in ("funnel", "absent")}
    (folder / "claims.yaml").write_text(yaml.safe_dump({"claims": claims}), encoding="utf-8")


def copy_repository(to: Path) -> Path:
    """The files of the repository that git would have, without the history; and what is compiled of them.

    Python and numba go by the times of the files, which the copies have too: the kernels are not compiled again in each copy,
    for ten seconds, in each process that measures.
    """
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    compiled = [path.relative_to(ROOT) for path in (ROOT / "tenas").glob("**/__pycache__/*")]
    for name in (*filter(None, succeed(listed).split("\0")), *compiled):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def copied(finished: Path, to: Path) -> Path:
    """A copy of a finished run, with what Snakemake noted of it and the files' times."""
    shutil.copytree(finished, to, dirs_exist_ok=True)
    return to


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` has filled, once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (base / f"{name}.made").touch()
    return folder


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- what Snakemake says


def job_counts(output: str) -> dict[str, int]:
    """The table of job stats that Snakemake prints, without its sum."""
    if "Job stats:" not in output:
        return {}
    table = output.split("Job stats:")[1].split("\n\n")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if name != "total"}


class Job(NamedTuple):
    """A job of a dry run with --printshellcmds."""

    rule: str
    inputs: list[str]
    outputs: list[str]
    log: str
    reason: str
    resources: dict[str, str]
    command: str


def jobs(output: str) -> list[Job]:
    """The jobs of a dry run, as it describes them; of those without a shell command (`all`) there is none."""
    found = []
    for rule, body, command in re.findall(
        r"^(?:local)?rule (\w+):\n((?:    .*\n)*)(?:Shell command: (.*)\n)?", output, re.MULTILINE
    ):
        keys = dict(re.findall(r"^    (\w+): (.*)$", body, re.MULTILINE))
        inputs, outputs = (keys.get(key, "").split(", ") if keys.get(key) else [] for key in ("input", "output"))
        resources = dict(re.findall(r"(\w+)=([^,]+)", keys.get("resources", "")))
        found.append(Job(rule, inputs, outputs, keys.get("log", ""), keys.get("reason", ""), resources, command))
    return found


def planned(folder: Path, *arguments: object, **more: object) -> list[Job]:
    """The jobs of a dry run."""
    return jobs(succeed(snakemake(folder, "--dry-run", "--printshellcmds", *arguments, **more)))


def with_new_code(found: Iterable[Job]) -> set[str]:
    """Rules that are repeated because of their own code or settings, not because of what another job makes."""
    return {job.rule for job in found if "Params have changed" in job.reason}


# --- what a configuration leads to, by the schedule of its searches


def shards_of(config: Mapping, round: object) -> int:
    """Shards of a round, of a checked configuration: none is without a subject. A round that prunes has the whole network too."""
    return min(config["shards"], round.trials + (round.stage in ("operators", "edges")))


def loaded(config: Mapping, folder: Path) -> dict:
    """A configuration with all of its settings, as from its folder."""
    with contextlib.chdir(folder):
        return load_config(config)


def expected_files(config: Mapping, name: str, folder: Path) -> set[str]:
    """The files of a finished run, below its own folder."""
    checked = loaded(config, folder)
    run = checked["runs"][name]
    found = {layout.SEARCH, layout.SUMMARY, layout.METRICS, layout.OVERVIEW}
    # Of an accuracy, which every run here has, a retraining, the time, and the rounds of each seed; only the built-in table has
    # parameters, by which all its cells are drawn.
    looked_up = checked["benchmark"].get(run["settings"]["space"])
    pictures = (
        {"time"}
        | ({"seeds"} if len(run["seeds"]) > 1 and (run["retrain"] or looked_up) else set())
        | ({"retraining"} if run["retrain"] else set())
    )
    pictures |= {"cloud"} if looked_up == "builtin" else set()
    pictures |= {f"rounds-seed{seed}" for seed in run["seeds"]}
    found |= {f"{layout.FIGURES}/{name}.{kind}" for name in pictures for kind in ("svg", "png", "csv")}
    found |= {f"{layout.FIGURES}/.snakemake_timestamp"}
    found |= {layout.LIMITS} if run["settings"]["limits"] else set()
    found |= {layout.RETRAIN} if run["retrain"] else set()
    seed = {layout.GENOTYPE, layout.DRAWING, layout.LOOKUP, layout.MASK.replace("{round}", "0")}
    if run["retrain"]:
        seed |= {layout.HISTORY, layout.RETRAIN_METRICS, layout.NETWORK, layout.PROGRAM, layout.ONNX, layout.EXPORT}
        seed |= {layout.NETWORK.replace("network.pt", "checkpoint.pt")}
    with contextlib.chdir(folder):
        rounds = schedule(run["settings"])
    for round, entry in zip(rounds, run["settings"]["rounds"], strict=True):
        of_round = {layout.TABLE[round.stage], layout.STATE[round.stage]}
        if round.stage == "training":
            trained = round.trials if entry["column"] is None else 0
            for place in range(1, trained + 1):
                for pattern in (layout.TRAINING_METRICS, layout.TRAINING_HISTORY, f"{layout.TRAINING}/checkpoint.pt"):
                    of_round.add(pattern.replace("{place}", str(place)))
        else:
            of_round |= {layout.SAMPLE} if round.stage == "cells" else set()
            for shard in range(1, shards_of(checked, round) + 1):
                of_round |= {p.replace("{shard}", str(shard)) for p in (layout.SCORES, layout.SCORES_RECORD)}
        seed |= {pattern.replace("{round}", str(round.number)) for pattern in of_round}
    return found | {pattern.format(seed=number) for number in run["seeds"] for pattern in seed}


def expected_jobs(config: Mapping, folder: Path) -> dict[str, int]:
    """Rule -> jobs of a configuration of which nothing has been made."""
    checked = loaded(config, folder)
    datasets = {part["dataset"] for kind in ("runs", "studies") for part in checked[kind].values()}
    found: Counter = Counter(all=1, prepare=len(datasets))
    for run in checked["runs"].values():
        seeds = len(run["seeds"])
        with contextlib.chdir(folder):
            rounds = schedule(run["settings"])
        found += Counter(search_settings=1, limits=int(bool(run["settings"]["limits"])), summary=1, plot=1)
        found += Counter(dict.fromkeys(("mask", "genotype", "draw", "lookup"), seeds))
        found += Counter(retrain_settings=1, retrain=seeds, export=seeds) if run["retrain"] else Counter()
        for round, entry in zip(rounds, run["settings"]["rounds"], strict=True):
            if round.stage == "training":
                found += Counter(training=seeds * round.trials if entry["column"] is None else 0, finalists=seeds)
            else:
                ranks = {"sample": seeds, "shortlist": seeds} if round.stage == "cells" else {"prune": seeds}
                found += Counter(ranks, score=seeds * shards_of(checked, round))
    for study in checked["studies"].values():
        found += Counter(study_settings=1, study_cells=1, study_score=min(checked["shards"], study["cells"]), correlate=1)
    found += Counter(claims=int(checked["claims"] is not None), table_search=int(checked["table_search"] is not None))
    return dict(+found)


# --- the code of a rule

SPACE, NETWORKS = (space_modules(get_space("nas-bench-201"), networks=networks) for networks in (False, True))
STAGES = {
    "lookup": "benchmark_query",
    "table_search": "benchmark_search",
    "correlate": "study_correlate",
}
BUILDS = {"limits", "score", "training", "retrain", "export", "study_score"}
OF_NO_SPACE = {"prepare", "summary"}


def modules_of(rule: str, measures: Iterable[str] = ()) -> list[str]:
    """The modules that a rule's digest is over, in a search of NAS-Bench-201: its stage, the space's, those of ``measures``."""
    of_space = [] if rule in OF_NO_SPACE else NETWORKS if rule in BUILDS else SPACE
    measured = [f"tenas.measures.{name}" for name in measures] if rule in ("score", "study_score") else []
    return [f"tenas.stages.{STAGES.get(rule, rule)}", *of_space, *measured]


# --- results


def sorted_rows(shards: Iterable[Path]) -> bytes:
    """All measurements of a round, in one order, whatever shards they were measured in."""
    return b"\n".join(sorted(line for shard in shards for line in shard.read_bytes().splitlines()[1:]))


def search_bytes(folder: Path) -> dict[str, bytes]:
    """What the search of a seed decided, and its measurements. Of trainings, whose records have times, what they came to."""
    found = {}
    for round in sorted(folder.glob("round*")):
        for name in ("ranking.csv", "mask.json", "sample.csv", "cells.csv", "shortlist.json"):
            if (round / name).exists():
                found[f"{round.name}/{name}"] = (round / name).read_bytes()
        if (round / "scores").exists():
            found[f"{round.name}/scores"] = sorted_rows((round / "scores").glob("*.csv"))
        for path in sorted(round.glob("trainings/*/history.csv")):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found | {name: (folder / name).read_bytes() for name in ("genotype.json", "genotype.svg") if (folder / name).exists()}
