"""Choose the cells that a study measures."""

from pathlib import Path
from typing import Annotated


def study_cells(
    *,
    settings: Annotated[Path, "study.json of the study"],
    index: Annotated[Path, "the space's table as CSV or Parquet, one row per cell; builtin is the built-in one"] = Path(
        "builtin"
    ),
    out: Annotated[Path, "CSV file of the cells"],
) -> None:
    """Choose the cells that a study measures."""
    from tenas.files import write_csv
    from tenas.settings.study import read_study
    from tenas.study.sample import sample_table

    cells = sample_table(read_study(settings), index)
    write_csv(out, ("cell", "arch"), [dict(zip(("cell", "arch"), cell, strict=True)) for cell in cells.cells])
