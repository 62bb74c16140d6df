"""Choose the cells that a round measures."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count, Seed


def sample(
    *,
    settings: Annotated[Path, "search.json of the run"],
    round: Annotated[Count, "number of the round, from 1"],
    seed: Annotated[Seed, "seed of the search"],
    before: Annotated[Path, "state after the round before: mask.json or shortlist.json"],
    limits: Annotated[Path | None, "limits.json of the run, if it has limits"] = None,
    out: Annotated[Path, "CSV file of the cells"],
) -> None:
    """Choose the cells that a round measures: a sample of the mask, a user's list, or the shortlist."""
    from tenas.files import write_csv
    from tenas.progress import note
    from tenas.search.limits import read_limits
    from tenas.search.sample import cells_of_round
    from tenas.settings.search import find_round, read_settings

    resolved = read_settings(settings)
    find_round(resolved, round)
    cells = cells_of_round(resolved, round, seed, before, read_limits(limits))
    entry = resolved["rounds"][round - 1]
    if entry.get("listed") and (left := entry["listed"] - len(cells.cells)) > 0:
        note(f"warning: {left} of the {entry['listed']} cells in {entry['sample']} are repeated or beyond the limits: left out")
    write_csv(out, ("cell", "arch"), [dict(zip(("cell", "arch"), cell, strict=True)) for cell in cells.cells])
