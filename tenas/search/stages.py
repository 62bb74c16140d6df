"""The stages of a search, file to file. Each writes whole files and reads only those of the stages before it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tenas.data import read_images, read_labels
from tenas.errors import TenasError
from tenas.files import format_csv, read_json, sha256, sha256_of, write_csv, write_json, write_text
from tenas.provenance import Stopwatch, code_digest, package_versions, processor, provenance, sealed
from tenas.search.draw import draw
from tenas.search.partial import Partial, origin_of
from tenas.search.prune import rank_round
from tenas.search.table import COLUMNS, Measurement, plan, read_scores, score_rows
from tenas.settings import check_search, measure_traits, validated
from tenas.spaces import Round, get_space

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[int], None]


def read_settings(path: str | os.PathLike) -> dict:
    """The settings of a search from its search.json, checked again: the file may have been edited."""
    settings = read_json(path, "search settings")
    space, preset = settings.pop("space", None), settings.pop("preset", None)
    settings = {"space": space, "preset": preset, **validated(settings, "search", str(path))}
    check_search(settings)
    return settings


def search_rounds(settings: Mapping) -> tuple[Round, ...]:
    """The schedule of a search."""
    return get_space(settings["space"]).rounds(settings["exclude"], settings["prune"])


def find_round(settings: Mapping, number: int) -> Round:
    rounds = search_rounds(settings)
    if not 1 <= number <= len(rounds):
        raise TenasError(f"There is no round {number}; this search has rounds 1 to {len(rounds)}.")
    return rounds[number - 1]


def made_by(settings: Mapping, inputs: Iterable[str | os.PathLike]) -> dict:
    """What a decision follows from. No time and no place: the same decision is the same bytes wherever it was taken."""
    return {
        "settings": dict(settings),
        "code_sha256": code_digest("search", "spaces"),
        "inputs": {"/".join(Path(path).parts[-2:]): sha256(path) for path in inputs},
    }


def mask_stage(settings: Mapping, out: str | os.PathLike) -> None:
    """The supernet that a search starts from."""
    mask = get_space(settings["space"]).full_mask(settings["exclude"])
    write_json(out, mask.to_json() | {"made_by": made_by(settings, [])})


def read_inputs(settings: Mapping, images: str | os.PathLike) -> tuple["np.ndarray", dict]:
    """Prepared images and their card; under ``labels`` it has the images' classes if one of the measures is of a loss."""
    pixels, card = read_images(images)
    if any(measure_traits()[name].labels for name in settings["measures"]):
        card |= {"labels": read_labels(images)}
    return pixels, card


def score_stage(
    settings: Mapping,
    images: str | os.PathLike,
    mask: str | os.PathLike,
    round: int,
    seed: int,
    out: str | os.PathLike,
    *,
    shard: tuple[int, int] = (1, 1),
    threads: int = 1,
    device: str = "auto",
    progress: Progress = lambda done: None,
) -> None:
    """Measure a shard of a round: ``out`` and, beside it with the suffix .json, what made it.

    A job that was killed is gone on with: what it had measured lies in a hidden file beside ``out`` until that is
    written. The record says under ``resumed`` how many measurements were found there.
    """
    from tenas.device import own_device
    from tenas.search.score import score

    stopwatch = Stopwatch()
    device = own_device(device)
    this_round = find_round(settings, round)
    space = get_space(settings["space"])
    before = space.read_mask(mask)
    pixels, card = read_inputs(settings, images)
    measurements = plan(settings, this_round.trials, shard)
    inputs = [images, Path(images).with_name("card.json"), mask]
    # All that a value can follow from. Another machine of the same kind may go on where one was taken away.
    origin = origin_of(
        {
            "settings": settings,
            "inputs": [sha256(path) for path in inputs],
            "seed": seed,
            "round": round,
            "shard": shard,
            "device": device,
            "processor": processor(device),
            "code": code_digest("data", "device.py", "measures", "networks", "search", "spaces"),
            "packages": package_versions(),
        }
    )
    out = Path(out)
    with Partial(out.with_name(f".{out.stem}.partial"), origin) as partial:
        stopwatch.earlier = partial.seconds
        if partial.values:
            progress(len(partial.values))

        def taken(measurement: Measurement, value: float) -> None:
            partial.add(measurement, value, stopwatch.seconds())
            progress(1)

        values = partial.values | score(
            settings,
            pixels,
            card,
            before,
            this_round,
            seed,
            [measurement for measurement in measurements if measurement not in partial.values],
            threads=threads,
            device=device,
            taken=taken,
        )
    text = format_csv(COLUMNS, score_rows(settings, space, before, this_round, values))
    made = provenance(
        settings=settings,
        inputs=inputs,
        stopwatch=stopwatch,
        device=device,
        seed=seed,
        round=round,
        shard=f"{shard[0]}/{shard[1]}",
        measurements=len(values),
        resumed=len(partial.values),
        scores_sha256=sha256_of(text),
    )
    # A scores file that is there always has its own record: one of an earlier run goes first, the new one comes last.
    out.unlink(missing_ok=True)
    write_json(out.with_suffix(".json"), sealed(made))
    write_text(out, text)
    partial.remove()


def prune_stage(
    settings: Mapping,
    mask: str | os.PathLike,
    round: int,
    scores: Sequence[str | os.PathLike],
    ranking: str | os.PathLike,
    out: str | os.PathLike,
) -> None:
    """Rank the trials of a round and prune: ``ranking``, a row a trial, and the next mask in ``out``."""
    space, this_round = get_space(settings["space"]), find_round(settings, round)
    before = space.read_mask(mask)
    values = read_scores(scores, settings, space, before, this_round)
    columns, rows, after = rank_round(settings, space, before, this_round, values)
    write_csv(ranking, columns, rows)
    # The ranking holds the decision and follows from the scores: its hash ties the mask to both, however they were
    # split.
    write_json(out, after.to_json() | {"made_by": made_by(settings, [mask, ranking])})


def genotype_stage(settings: Mapping, mask: str | os.PathLike, out: str | os.PathLike, drawing: str | os.PathLike) -> None:
    """Export what a search has left: JSON with the customary text under ``arch``, and a drawing."""
    space = get_space(settings["space"])
    genotype = space.genotype(space.read_mask(mask))
    write_text(drawing, draw(genotype))
    write_json(out, genotype.to_json() | {"made_by": made_by(settings, [mask])})


def measurement_count(settings: Mapping) -> int:
    """Measurements of a whole search, for a progress bar."""
    return sum(len(plan(settings, round.trials)) for round in search_rounds(settings))


def search(
    settings: Mapping,
    images: str | os.PathLike,
    seed: int,
    out: str | os.PathLike,
    *,
    threads: int = 1,
    device: str = "auto",
    progress: Progress = lambda done: None,
) -> Path:
    """A whole search of one seed into the folder ``out``: the files that the workflow makes, with one shard a round.

    Gives the path of the genotype. Starts from the images and the settings; what an earlier run left there is replaced.
    """
    out = Path(out)
    mask = out / "round0" / "mask.json"
    mask_stage(settings, mask)
    for round in search_rounds(settings):
        folder = out / f"round{round.number}"
        scores = folder / "scores" / "1.csv"
        score_stage(settings, images, mask, round.number, seed, scores, threads=threads, device=device, progress=progress)
        next_mask = folder / "mask.json"
        prune_stage(settings, mask, round.number, [scores], folder / "ranking.csv", next_mask)
        mask = next_mask
    genotype_stage(settings, mask, out / "genotype.json", out / "genotype.svg")
    return out / "genotype.json"
