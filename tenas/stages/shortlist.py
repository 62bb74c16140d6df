"""Rank the cells of a round and keep the best."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count


def shortlist(
    *,
    settings: Annotated[Path, "search.json of the run"],
    cells: Annotated[Path, "sample.csv of the round"],
    round: Annotated[Count, "number of the round, from 1"],
    scores: Annotated[list[Path], "scores of all shards"],
    ranking: Annotated[Path, "CSV file of the ranking, one row per cell"],
    out: Annotated[Path, "JSON file of the cells that are kept, best first"],
) -> None:
    """Rank the cells of a round and keep the best."""
    from tenas.files import write_csv, write_json
    from tenas.scoring.subjects import read_cells
    from tenas.scoring.table import read_scores
    from tenas.search.constant import warn_of_nothing
    from tenas.search.made_by import made_by
    from tenas.search.shortlist import rank_cells, shortlist_json
    from tenas.settings.search import find_round, read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    find_round(resolved, round)
    entry, space = resolved["rounds"][round - 1], get_space(resolved["space"])
    subjects = read_cells(cells, space)
    values = read_scores(scores, entry["measures"], subjects, f"round {round}")
    columns, rows, kept = rank_cells(entry, subjects, values)
    write_csv(ranking, columns, rows)
    warn_of_nothing(rows, "_score", round)
    write_json(out, shortlist_json(space, kept) | {"made_by": made_by("shortlist", resolved, [cells, ranking], entry)})
