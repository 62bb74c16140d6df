"""How many jobs does one Snakemake carry? ``python -m benchmarks.dag [--runs 1 10 100 1000] [--svg docs/img/dag.svg]``

Dry runs, one after another, of configurations with ever more runs: the DARTS space without two of its operators, which makes
6 rounds, in 16 shards, one seed, no retraining. Printed are the seconds of processor time until all jobs are known, and the
largest memory of the process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from tenas.settings.search import schedule, search_settings

ROOT = Path(__file__).resolve().parent.parent
SPACE, SHARDS = "darts", 16
SEARCH = {"exclude": ["none", "avg_pool_3x3"]}


class Plan(NamedTuple):
    """A dry run: jobs found, processor time in seconds, memory in MB."""

    runs: int
    jobs: int
    seconds: float
    memory: float


def jobs_of(runs: int) -> int:
    """Jobs of a configuration: two in all; for each run settings, mask, genotype, drawings, look-up, summary, rounds."""
    rounds = schedule(search_settings(SPACE, "pruning", SEARCH))
    return 2 + runs * (7 + len(rounds) * (SHARDS + 1))


def configuration(runs: int) -> dict:
    run = {"space": SPACE, "dataset": "digits", "preset": "pruning", "search": SEARCH, "seeds": [0]}
    return {
        "shards": SHARDS,
        "device": "cpu",
        "datasets": {"digits": {"source": "digits"}},
        "runs": {f"run{number:04d}": run for number in range(runs)},
    }


def dry_run(runs: int) -> Plan:
    """Let Snakemake plan ``runs`` runs in an empty folder. Raises CalledProcessError when it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config").mkdir()
        (Path(folder) / "config" / "config.yaml").write_text(yaml.safe_dump(configuration(runs)), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", "--quiet", "all"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise subprocess.CalledProcessError(status, command)
    return Plan(runs, jobs_of(runs), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Time and memory over the number of jobs, logarithmic, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, name, values in zip(
        figure.subplots(1, 2),
        ("processor time of a dry run, s", "memory of a dry run, MB"),
        ([plan.seconds for plan in plans], [plan.memory for plan in plans]),
        strict=True,
    ):
        axes.loglog([plan.jobs for plan in plans], values, "o-", color="#0072b2")
        axes.set_xlabel("jobs")
        axes.set_title(name, fontsize="medium")
        axes.grid(which="both", alpha=0.25)
        for plan, value in zip(plans, values, strict=True):
            axes.annotate(f"{plan.runs} runs", (plan.jobs, value), (4, -10), textcoords="offset points", fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 10, 100, 1000], help="numbers of runs, from small to large")
    parser.add_argument("--svg", type=Path, help="draw the curve here")
    arguments = parser.parse_args()
    plans = [dry_run(runs) for runs in arguments.runs]
    # Not before: it imports torch, whose memory a process that is started from here would be charged with.
    from benchmarks.side_by_side import table

    shown = [
        [plan.runs, plan.jobs, f"{plan.seconds:.1f}", f"{1000 * plan.seconds / plan.jobs:.1f}", f"{plan.memory:.0f}"]
        for plan in plans
    ]
    print(table(["runs", "jobs", "processor time, s", "ms a job", "memory, MB"], shown))
    if arguments.svg:
        draw(plans, arguments.svg)


if __name__ == "__main__":
    main()
