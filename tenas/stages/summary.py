"""Gather the results of a run's seeds."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Seed


def summary(
    run: Annotated[Path, "folder of the run"],
    *,
    seeds: Annotated[list[Seed], "seeds of the run"],
    out: Annotated[Path, "CSV file, one row per seed"],
    metrics: Annotated[Path, "JSON file of their accuracies alone, which DVC compares"],
) -> None:
    """Gather the results of a run's seeds."""
    from tenas.errors import damaged
    from tenas.files import write_csv, write_json
    from tenas.report.summary import accuracies, summarise

    with damaged(run):
        columns, rows = summarise(run, seeds)
        write_json(metrics, accuracies(rows))
    write_csv(out, columns, rows)
