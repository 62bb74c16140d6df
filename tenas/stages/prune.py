"""Rank the trials of a round and prune."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count


def prune(
    *,
    settings: Annotated[Path, "search.json of the run"],
    mask: Annotated[Path, "mask before the round"],
    round: Annotated[Count, "number of the round, from 1"],
    scores: Annotated[list[Path], "scores of all shards"],
    limits: Annotated[Path | None, "limits.json of the run, if it has limits"] = None,
    ranking: Annotated[Path, "CSV file of the ranking, one row per trial"],
    out: Annotated[Path, "mask after the round"],
) -> None:
    """Rank the trials of a round and prune."""
    from tenas.files import write_csv, write_json
    from tenas.scoring.subjects import trials_of
    from tenas.scoring.table import read_scores
    from tenas.search.constant import warn_of_nothing
    from tenas.search.limits import read_limits
    from tenas.search.made_by import made_by
    from tenas.search.prune import rank_round
    from tenas.settings.search import find_round, read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    this_round = find_round(resolved, round)
    entry = resolved["rounds"][round - 1]
    subjects = trials_of(get_space(resolved["space"]).read_mask(mask), this_round, entry)
    values = read_scores(scores, entry["measures"], subjects, f"round {round}")
    columns, rows, after = rank_round(entry, subjects, values, read_limits(limits))
    write_csv(ranking, columns, rows)
    warn_of_nothing(rows, "_change", round)
    # The ranking contains the decision and depends on the scores, not on their shards: its hash ties the mask to both.
    inputs = [mask, ranking, *([limits] if limits else [])]
    write_json(out, after.to_json() | {"made_by": made_by("prune", resolved, inputs, entry)})
