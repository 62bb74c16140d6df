"""Measure a shard of a round's subjects."""

from pathlib import Path
from typing import Annotated

from tenas.progress import Progress, silent
from tenas.stages.types import Count, Device, Seed, Shard


def score(
    *,
    settings: Annotated[Path, "search.json of the run"],
    images: Annotated[Path, "images.npy of a prepared data set, with card.json and labels.npy next to it"],
    subjects: Annotated[Path, "the subjects: mask.json before a round that prunes, or sample.csv of a round of cells"],
    round: Annotated[Count, "number of the round, from 1"],
    seed: Annotated[Seed, "seed of the search"],
    shard: Annotated[Shard, "every N-th subject"] = (1, 1),
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto is the CPU, the faster one for measures"] = "auto",
    planned_code: Annotated[
        str | None, "digest of the code that the workflow planned this job with: it must not have changed"
    ] = None,
    out: Annotated[Path, "CSV file of the scores; their record is written next to it as JSON"],
    progress: Progress = silent,
) -> None:
    """Measure a shard of a round's subjects.

    Resumes a killed job: finished measurements are kept in a hidden file next to ``out``.
    """
    from tenas.scoring.shard import score_shard
    from tenas.scoring.subjects import read_subjects
    from tenas.search.made_by import measuring_code
    from tenas.settings.search import find_round, read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    this_round, entry = find_round(resolved, round), resolved["rounds"][round - 1]
    score_shard(
        settings=resolved,
        measures=entry["measures"],
        subjects=read_subjects(subjects, get_space(resolved["space"]), this_round, entry),
        images=images,
        inputs=[subjects],
        out=out,
        shard=shard,
        threads=threads,
        device=device,
        code=measuring_code("score", resolved, entry),
        facts={"seed": seed, "round": round},
        progress=progress,
        what=f"round {round}",
        planned_code=planned_code,
    )
