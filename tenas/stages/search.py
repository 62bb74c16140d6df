"""A whole search in one process, with the results of the workflow."""

from pathlib import Path
from typing import Annotated, Any

from tenas.progress import Progress, silent
from tenas.stages.types import Count, Device, Seed


def search(
    *,
    space: Annotated[str, "name of a space, or path/to/file.py:object"] = "nas-bench-201",
    data: Annotated[
        str, "folder of a prepared data set, or images: an .npz file, a folder of classes, a source's name"
    ] = "data/digits",
    preset: Annotated[str, "name in config/presets, or a YAML file"] = "default",
    seeds: Annotated[list[Seed], "one search for each"] = [0],  # noqa: B006
    limit: Annotated[list[str], "parameters=0.5e6, flops=60%%, latency=FILE:COLUMN:5.0"] = [],  # noqa: B006
    trainings: Annotated[str | None, "what a round of trainings does: real, table:COLUMN, none"] = None,
    table: Annotated[Path, "table of the space, for trainings that are looked up; builtin comes with the project"] = Path(
        "builtin"
    ),
    set: Annotated[list[str], "keys of the preset that are different: KEY=VALUE, such as rounds.1.keep=8"] = [],  # noqa: B006
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto is a GPU where there is one"] = "auto",
    out: Annotated[Path, "folder of the run"],
    progress: Progress = silent,
) -> str:
    """A whole search in one process, with the results of the workflow.

    The same command goes on where it was: what was measured from the same inputs is not measured again.
    """
    from tenas.files import read_json
    from tenas.search.given import given_data, given_limits
    from tenas.settings.search import assigned, search_settings

    settings = search_settings(
        space, preset, assigned(set), limits=given_limits(limit), trainings=trainings
    )  # fmt: skip
    folder = given_data(data, out)
    genotypes = [
        search_seed(settings, folder, seed, out, threads=threads, device=device, table=table, progress=progress) for seed in seeds
    ]
    lines = [f"seed {seed}: {read_json(found, 'genotype')['arch']}" for seed, found in zip(seeds, genotypes, strict=True)]
    return "\n".join(lines)


def search_seed(
    settings: dict[str, Any],
    data: Path,
    seed: int,
    out: Path,
    *,
    threads: int = 1,
    device: Device = "auto",
    table: Path = Path("builtin"),
    progress: Progress = silent,
) -> Path:
    """A search of one seed into the run's folder ``out``: the files that the workflow makes, with one shard per round.

    ``data``: folder of a prepared data set. Gives the path of the genotype. Finished rounds are kept when they follow from the
    same settings, images and code. Raises TenasError when ``out`` has a search of other settings.
    """
    from tenas import layout
    from tenas.errors import TenasError
    from tenas.files import read_json, write_json
    from tenas.scoring.shard import score_shard
    from tenas.scoring.subjects import read_cells, trials_of
    from tenas.search.given import training_dataset
    from tenas.search.made_by import measuring_code
    from tenas.settings.search import check_settings, schedule
    from tenas.spaces import get_space
    from tenas.stages.draw import draw
    from tenas.stages.finalists import finalists
    from tenas.stages.genotype import genotype
    from tenas.stages.limits import limits
    from tenas.stages.mask import mask
    from tenas.stages.prune import prune
    from tenas.stages.sample import sample
    from tenas.stages.shortlist import shortlist
    from tenas.stages.training import training

    settings_file = layout.path(layout.SEARCH, out)
    settings = check_settings(settings, "search")
    if settings_file.exists() and read_json(settings_file, "search settings") != settings:
        raise TenasError(f"The folder {out} has a search of other settings: remove it, or choose another folder for this one.")
    write_json(settings_file, settings)
    space, images = get_space(settings["space"]), data / layout.IMAGES
    limits_file = None
    if settings["limits"]:
        limits_file = layout.path(layout.LIMITS, out)
        limits(settings=settings_file, card=data / layout.CARD, out=limits_file)
    state = layout.path(layout.MASK, out, seed=seed, round=0)
    mask(settings=settings_file, out=state)
    for round in schedule(settings):
        entry, number = settings["rounds"][round.number - 1], round.number
        before, state = state, layout.path(layout.STATE[round.stage], out, seed=seed, round=number)
        ranking = layout.path(layout.TABLE[round.stage], out, seed=seed, round=number)
        if round.stage == "training":
            metrics = []
            if entry["column"] is None:
                dataset = training_dataset(data)
                with progress(round.trials, f"round {number}", "trainings") as advance:
                    for place in range(1, round.trials + 1):
                        folder = layout.path(layout.TRAINING, out, seed=seed, round=number, place=place)
                        training(
                            settings=settings_file, dataset=dataset, shortlist=before, round=number, place=place, seed=seed,
                            threads=threads, device=device, out=folder,
                        )  # fmt: skip
                        metrics.append(folder / "metrics.json")
                        advance(1)
            finalists(
                settings=settings_file, shortlist=before, round=number, trainings=metrics, table=table, ranking=ranking, out=state
            )
            continue
        subjects = before
        if round.stage == "cells":
            subjects = layout.path(layout.SAMPLE, out, seed=seed, round=number)
            sample(settings=settings_file, round=number, seed=seed, before=before, limits=limits_file, out=subjects)
        scores = layout.path(layout.SCORES, out, seed=seed, round=number, shard=1)
        score_shard(
            settings=settings,
            measures=entry["measures"],
            subjects=read_cells(subjects, space)
            if round.stage == "cells"
            else trials_of(space.read_mask(subjects), round, entry),
            names=(seed, number),
            images=images,
            inputs=[subjects],
            out=scores,
            shard=(1, 1),
            threads=threads,
            device=device,
            code=measuring_code("score", settings, entry),
            facts={"seed": seed, "round": number},
            progress=progress,
            what=f"seed {seed}, round {number}",
            reuse=True,
        )
        if round.stage == "cells":
            shortlist(settings=settings_file, cells=subjects, round=number, scores=[scores], ranking=ranking, out=state)
        else:
            prune(
                settings=settings_file, mask=before, round=number, scores=[scores], limits=limits_file, ranking=ranking, out=state
            )
    found = layout.path(layout.GENOTYPE, out, seed=seed)
    genotype(settings=settings_file, state=state, out=found)
    draw(genotype=found, out=layout.path(layout.DRAWING, out, seed=seed))
    return found
