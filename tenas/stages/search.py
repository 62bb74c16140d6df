"""Run a whole search in one process, with the results of the workflow."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tenas import layout
from tenas.progress import Progress, silent
from tenas.stages.types import Count, Device, Seed

if TYPE_CHECKING:
    from tenas.scoring.workers import Workers
    from tenas.spaces.base import Round


def search(
    *,
    space: Annotated[str, "name of a space, or path/to/file.py:object"] = "nas-bench-201",
    data: Annotated[
        str, "images: a folder of classes, an .npz file, a source's name, or the output folder of tenas prepare"
    ] = "digits",
    preset: Annotated[str, "name in config/presets, or a YAML file"] = "default",
    seeds: Annotated[list[Seed], "one search for each"] = [0],  # noqa: B006
    limit: Annotated[list[str], "parameters=0.5e6, flops=60%%, latency=FILE:COLUMN:5.0"] = [],  # noqa: B006
    trainings: Annotated[str | None, "mode of a round of trainings: real, table:COLUMN, none"] = None,
    table: Annotated[Path, "table of the space, for trainings that are looked up; builtin is the built-in one"] = Path("builtin"),
    set: Annotated[list[str], "changes to the preset: KEY=VALUE, such as rounds.1.keep=8"] = [],  # noqa: B006
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto trains on a GPU if there is one, and measures on the CPU"] = "auto",
    out: Annotated[Path, "folder of the run"],
    progress: Progress = silent,
) -> str:
    """Run a whole search in one process, with the results of the workflow.

    The same command resumes an interrupted search: finished measurements of the same inputs are reused. Images that are not
    prepared yet are prepared in the folder data of the run.

    Examples:
        tenas search --trainings none --out results/try
        tenas search --data photos --limit parameters=0.5e6 --threads 2 --out results/photos
        tenas search --data photos.npz --set measures.ntk_condition_number.repeats=5 rounds.1.sample=200 --out results/few
        tenas search --space my_space.py:SPACE --preset my_preset.yaml --seeds 0 1 2 --out results/mine
    """
    from tenas.data.prepared import read_card
    from tenas.errors import TenasError
    from tenas.files import read_json
    from tenas.locks import alone
    from tenas.scoring.workers import Workers
    from tenas.search.given import check_others, given_data, given_limits, searched_before
    from tenas.settings.search import assigned, search_settings

    if doubled := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise TenasError(f"The seed {doubled[0]} is given twice.")
    settings = search_settings(space, preset, assigned(set), limits=given_limits(limit), trainings=trainings)
    # Before images are prepared into it: it may have those of another search.
    with alone(out):
        settings = _claim(settings, out)
    others = searched_before(out, seeds)
    folder, dataset = given_data(data, out, others)
    check_others(settings, read_card(folder / layout.CARD)[0]["sha256"], table, others, out)
    with Workers(threads) as workers:
        genotypes = [
            search_seed(
                settings, folder, seed, out, dataset=dataset, workers=workers, device=device, table=table, progress=progress
            )
            for seed in seeds
        ]
    lines = [f"seed {seed}: {read_json(found, 'genotype')['arch']}" for seed, found in zip(seeds, genotypes, strict=True)]
    return "\n".join(lines)


def _claim(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the settings of a search into its folder, locked by this process, or check those that exist. Returns them.

    A preset and a file of a space keep the names by which they were called first. Settings of a search without measurements, such
    as a refused one, may be replaced. Raises TenasError if the folder has a search with other settings.
    """
    from tenas.errors import TenasError
    from tenas.files import read_json, write_json
    from tenas.settings.search import first_difference, renamed

    path = layout.path(layout.SEARCH, out)
    written = read_json(path, "search settings") if path.exists() else {}
    differs = first_difference(written, settings) if written else None
    # Locks belong to a running search, or to a killed one.
    begun = (layout.SCORES, str(Path(layout.GENOTYPE).with_name(".lock")))
    if differs and any(any(out.glob(pattern.format(seed="*", round="*", shard="*"))) for pattern in begun):
        raise TenasError(
            f"The folder {out} has a search of other settings ({differs}): choose another folder for this one, or remove it."
        )
    if written and not differs:
        settings = renamed(settings, written)
    write_json(path, settings)
    return settings


class _Seed(NamedTuple):
    """A search of one seed: what all of its rounds need.

    ``limits``: file of the run's limits, if it has any. ``data``: folder of the images, which were drawn from ``dataset``, by
    default as its card says. ``images``: hash of the images at its start.
    """

    settings: dict[str, Any]
    settings_file: Path
    limits: Path | None
    data: Path
    dataset: dict[str, Any] | None
    seed: int
    out: Path
    workers: "Workers"
    device: Device
    table: Path
    progress: Progress
    images: str

    def file(self, pattern: str, round: int, **wildcards: int) -> Path:
        """A file of a round, by its pattern in tenas.layout."""
        return layout.path(pattern, self.out, seed=self.seed, round=round, **wildcards)


def search_seed(
    settings: dict[str, Any],
    data: Path,
    seed: int,
    out: Path,
    *,
    dataset: dict[str, Any] | None = None,
    workers: "Workers | None" = None,
    device: Device = "auto",
    table: Path = Path("builtin"),
    progress: Progress = silent,
) -> Path:
    """Search with one seed in the run's folder ``out``: the files of the workflow, with one shard per round.

    ``data``: folder of a prepared data set. ``dataset``: entry of what it was drawn from, by default as its card says.
    ``workers``: for all rounds, as many as threads may be used; by default one thread. Returns the path of the genotype. Finished
    rounds are kept if they follow from the same settings, images and code. Waits for another process that searches with the same
    seed in the same folder. Raises TenasError if ``out`` has a search with other settings.
    """
    from tenas.data.prepared import read_card
    from tenas.locks import alone
    from tenas.scoring.workers import Workers
    from tenas.settings.search import check_settings, schedule
    from tenas.settings.sizes import check_sizes
    from tenas.stages.draw import draw
    from tenas.stages.genotype import genotype
    from tenas.stages.limits import limits
    from tenas.stages.mask import mask

    settings = check_settings(settings, "search")
    card, _ = read_card(data / layout.CARD)
    check_sizes(settings, card["side"])
    limits_file = layout.path(layout.LIMITS, out) if settings["limits"] else None
    settings_file = layout.path(layout.SEARCH, out)
    found = layout.path(layout.GENOTYPE, out, seed=seed)
    with ExitStack() as locked:
        # Searches of other seeds share the folder.
        with alone(out):
            settings = _claim(settings, out)
            if limits_file is not None:
                limits(settings=settings_file, card=data / layout.CARD, out=limits_file)
            locked.enter_context(alone(found.parent))
        search = _Seed(
            settings,
            settings_file,
            limits_file,
            data,
            dataset,
            seed,
            out,
            workers or Workers(1),
            device,
            table,
            progress,
            card["sha256"],
        )
        state = search.file(layout.MASK, 0)
        mask(settings=settings_file, out=state)
        for round in schedule(settings):
            state = _ROUNDS[round.stage](search, round, state)
        genotype(settings=settings_file, state=state, out=found)
        draw(genotype=found, out=layout.path(layout.DRAWING, out, seed=seed))
    return found


def _score(search: _Seed, round: "Round", subjects: Path) -> Path:
    """Measure a round's subjects, unless their scores exist. Returns the file of the scores."""
    from tenas.data.prepared import read_card
    from tenas.errors import TenasError
    from tenas.scoring.shard import score_shard
    from tenas.scoring.subjects import read_subjects
    from tenas.search.made_by import measuring_code
    from tenas.spaces import get_space

    if read_card(search.data / layout.CARD)[0]["sha256"] != search.images:
        raise TenasError(f"The images in {search.data} were prepared anew during the search: run the same command again.")
    settings, number = search.settings, round.number
    entry, scores = settings["rounds"][number - 1], search.file(layout.SCORES, number, shard=1)
    score_shard(
        settings=settings,
        measures=entry["measures"],
        subjects=read_subjects(subjects, get_space(settings["space"]), round, entry),
        images=search.data / layout.IMAGES,
        inputs=[subjects],
        out=scores,
        shard=(1, 1),
        threads=search.workers.count,
        device=search.device,
        code=measuring_code("score", settings, entry),
        facts={"seed": search.seed, "round": number},
        progress=search.progress,
        what=f"seed {search.seed}, round {number}",
        workers=search.workers,
        reuse=True,
    )
    return scores


def _prune(search: _Seed, round: "Round", before: Path) -> Path:
    from tenas.stages.prune import prune

    number, scores = round.number, _score(search, round, before)
    ranking, mask = search.file(layout.RANKING, number), search.file(layout.MASK, number)
    prune(
        settings=search.settings_file, mask=before, round=number, scores=[scores], limits=search.limits, ranking=ranking, out=mask
    )
    return mask


def _cells(search: _Seed, round: "Round", before: Path) -> Path:
    from tenas.stages.sample import sample
    from tenas.stages.shortlist import shortlist

    number = round.number
    cells, ranking, kept = (search.file(pattern, number) for pattern in (layout.SAMPLE, layout.CELLS, layout.SHORTLIST))
    sample(settings=search.settings_file, round=number, seed=search.seed, before=before, limits=search.limits, out=cells)
    scores = _score(search, round, cells)
    shortlist(settings=search.settings_file, cells=cells, round=number, scores=[scores], ranking=ranking, out=kept)
    return kept


def _train(search: _Seed, round: "Round", before: Path) -> Path:
    """Train the finalists, or look them up, and keep the best."""
    from tenas.search.given import training_dataset
    from tenas.stages.finalists import finalists
    from tenas.stages.training import training

    number, metrics = round.number, []
    if search.settings["rounds"][number - 1]["column"] is None:
        dataset = search.dataset or training_dataset(search.data)
        with search.progress(round.trials, f"round {number}", "trainings") as advance:
            for place in range(1, round.trials + 1):
                training(
                    settings=search.settings_file,
                    dataset=dataset,
                    shortlist=before,
                    round=number,
                    place=place,
                    seed=search.seed,
                    card=search.data / layout.CARD,
                    threads=search.workers.count,
                    device=search.device,
                    out=search.file(layout.TRAINING, number, place=place),
                    progress=search.progress,
                )
                metrics.append(search.file(layout.TRAINING_METRICS, number, place=place))
                advance(1)
    ranking, kept = search.file(layout.TRAININGS, number), search.file(layout.FINALISTS, number)
    finalists(
        settings=search.settings_file, shortlist=before, round=number, trainings=metrics, table=search.table, ranking=ranking,
        out=kept,
    )  # fmt: skip
    return kept


# Kind of round -> function from the file of the state before to that of the state after.
_ROUNDS = {"operators": _prune, "edges": _prune, "cells": _cells, "training": _train}
