"""Choose the best of the finalists by their short trainings."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count


def finalists(
    *,
    settings: Annotated[Path, "search.json of the run"],
    shortlist: Annotated[Path, "shortlist.json of the round before"],
    round: Annotated[Count, "number of the round, from 1"],
    trainings: Annotated[list[Path], "metrics.json of each training, in the shortlist's order"] = [],  # noqa: B006
    table: Annotated[Path | None, "table of the space, if short trainings are looked up"] = None,
    ranking: Annotated[Path, "CSV file of the trainings, one row per cell"],
    out: Annotated[Path, "JSON file of the cells that are kept, best first"],
) -> None:
    """Choose the best of the finalists by the validation accuracy of their short trainings."""
    from tenas.benchmark.builtin import index_path
    from tenas.files import write_csv, write_json
    from tenas.search.finalists import looked_up, rank_finalists, trained
    from tenas.search.made_by import made_by
    from tenas.search.shortlist import read_shortlist, shortlist_json
    from tenas.settings.search import find_round, read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    find_round(resolved, round)
    entry, space = resolved["rounds"][round - 1], get_space(resolved["space"])
    cells = read_shortlist(shortlist, space).cells
    results = trained(trainings, cells) if entry["column"] is None else looked_up(table, entry["column"], space, cells)
    columns, rows, kept = rank_finalists(cells, results, entry["keep"])
    write_csv(ranking, columns, rows)
    inputs = [shortlist, ranking, *([index_path(table, space)] if table is not None and entry["column"] is not None else [])]
    write_json(out, shortlist_json(space, kept) | {"made_by": made_by("finalists", resolved, inputs)})
