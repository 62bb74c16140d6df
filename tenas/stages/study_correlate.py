"""Correlate a study's measures with the accuracies of its cells."""

from pathlib import Path
from typing import Annotated


def study_correlate(
    *,
    settings: Annotated[Path, "study.json of the study"],
    cells: Annotated[Path, "CSV file of the cells"],
    index: Annotated[Path, "the space's table as CSV or Parquet, one row per cell; builtin is the built-in one"] = Path(
        "builtin"
    ),
    scores: Annotated[list[Path], "scores of all shards, with their records next to them"],
    out: Annotated[Path, "folder for correlations.csv, correlations.json, forest.svg and scatter.svg"],
) -> None:
    """Correlate a study's measures with the accuracies of its cells."""
    from tenas.settings.study import read_study
    from tenas.study.report import correlate

    correlate(read_study(settings), cells, index, scores, out)
