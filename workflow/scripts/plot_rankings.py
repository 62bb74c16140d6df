"""The figure of a seed's rankings, for the report: what each trial did to the measures, and what was pruned."""

import sys
from contextlib import redirect_stderr
from pathlib import Path

from tenas.errors import TenasError
from tenas.report import plot_rankings

job = snakemake  # noqa: F821 - Snakemake puts it there

with open(job.log[0], "w", encoding="utf-8") as log, redirect_stderr(log):
    try:
        plot_rankings(Path(job.output[0]).parent, job.output[0])
    except TenasError as error:
        sys.exit(f"tenas: {error}")
