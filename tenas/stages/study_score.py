"""Measure a shard of a study's cells."""

from pathlib import Path
from typing import Annotated

from tenas.progress import Progress, silent
from tenas.stages.types import Count, Device, Shard


def study_score(
    *,
    settings: Annotated[Path, "study.json of the study"],
    images: Annotated[Path, "images.npy of a prepared data set, with card.json and labels.npy next to it"],
    cells: Annotated[Path, "CSV file of the cells, with the columns cell (a number) and arch"],
    shard: Annotated[Shard, "every N-th cell"] = (1, 1),
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto is the CPU, the faster one for measures"] = "auto",
    planned_code: Annotated[
        str | None, "digest of the code that the workflow planned this job with: it must not have changed"
    ] = None,
    out: Annotated[Path, "CSV file of the scores; their record is written next to it as JSON"],
    progress: Progress = silent,
) -> None:
    """Measure a shard of a study's cells.

    Resumes a killed job: finished measurements are kept in a hidden file next to ``out``.
    """
    from tenas.scoring.shard import score_shard
    from tenas.scoring.subjects import read_cells
    from tenas.search.made_by import measuring_code
    from tenas.settings.study import read_study
    from tenas.spaces import get_space

    study = read_study(settings)
    score_shard(
        settings=study,
        measures=study["measures"],
        subjects=read_cells(cells, get_space(study["space"])),
        images=images,
        inputs=[cells],
        out=out,
        shard=shard,
        threads=threads,
        device=device,
        code=measuring_code("study_score", study, study),
        facts={"seed": study["seed"]},
        progress=progress,
        what="study",
        planned_code=planned_code,
    )
