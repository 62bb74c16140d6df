"""Train a finalist for a few epochs, with a part of the training images held out."""

from pathlib import Path
from typing import Annotated

from tenas.progress import Progress, silent
from tenas.stages.types import Count, Device, Json, Seed


def training(
    *,
    settings: Annotated[Path, "search.json of the run"],
    dataset: Annotated[Json, "the data set's entry in the configuration, as a JSON object"],
    shortlist: Annotated[Path, "shortlist.json of the round before"],
    round: Annotated[Count, "number of the round, from 1"],
    place: Annotated[Count, "place of the cell on the shortlist, from 1"],
    card: Annotated[Path | None, "card.json of the images that were searched on: they must not have changed since"] = None,
    seed: Annotated[Seed, "seed of the search"],
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto is a GPU if there is one"] = "auto",
    out: Annotated[Path, "folder for history.csv, metrics.json and the checkpoint"],
    progress: Progress = silent,
) -> None:
    """Train a finalist for a few epochs, with a part of the training images held out.

    Resumes a killed job after the last finished epoch. If the shortlist has no cell at that place, the metrics say so.
    """
    from tenas.retrain.stage import train_finalist
    from tenas.search.shortlist import read_shortlist
    from tenas.settings.search import find_round, read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    find_round(resolved, round)
    space = get_space(resolved["space"])
    cells = read_shortlist(shortlist, space).cells
    cell = cells[place - 1] if place <= len(cells) else None
    train_finalist(
        {"dataset": dataset, **resolved["rounds"][round - 1]["training"]},
        None if cell is None else space.parse(cell.arch),
        seed=seed,
        threads=threads,
        device=device,
        out=out,
        inputs=[settings, shortlist],
        facts={"round": round, "place": place},
        card=card,
        quiet=progress is silent,
    )
