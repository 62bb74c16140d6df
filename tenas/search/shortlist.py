"""Rank discrete cells by their scores, aggregate the ranks of all measures, keep a shortlist.

SciPy's statistics take a second to be imported, and are when they are needed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenas.errors import TenasError
from tenas.files import read_json
from tenas.measures.catalogue import Measure, get_measure
from tenas.scoring.subjects import Cell, Cells, Measurement
from tenas.search.repeats import bootstrap_counts, rounded, standard_error, table_of_repeats
from tenas.spaces.base import Space

RESAMPLES = 1000


def on_scale(measure: Measure, values: np.ndarray) -> np.ndarray:
    """Values on the scale of their mean: logarithms where the measure is never negative.

    Kappa and SynFlow span many powers of ten, and a single repeat would decide a plain mean.
    """
    with np.errstate(divide="ignore"):
        scores: np.ndarray = values if measure.signed else np.log(values)
    return scores


def mean_score(measure: Measure, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over the repeats, (samples, cells) from (cells, repeats) and counts (samples, repeats); more is better.

    The values are averaged ``on_scale``. An infinite value in any repeat makes the mean infinite.
    """
    scores = on_scale(measure, values)
    scores = -scores if measure.lower_is_better else scores
    finite = np.isfinite(scores)
    sums = weights @ np.where(finite, scores, 0.0).T
    means = rounded(sums / weights.sum(axis=1, keepdims=True), scores, raw=measure.signed)
    means[weights @ (scores == np.inf).T.astype(float) > 0] = np.inf
    means[weights @ (scores == -np.inf).T.astype(float) > 0] = -np.inf
    return means


def places(means: np.ndarray) -> np.ndarray:
    """Rank along the last axis, 1 for the best; ties share their mean rank."""
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(-means, method="average", axis=-1)
    return found


def aggregated(rank_list: Sequence[np.ndarray], aggregate: str) -> np.ndarray:
    """Aggregate the ranks by all measures to one score per cell; more is better.

    ``rank_sum``: minus their sum (TE-NAS). ``log_rank_sum``: sum of log(place / cells), places counted from the worst, which
    penalises a bad rank in any measure (AZ-NAS, Lee and Ham, CVPR 2024, equation 10).
    """
    together = np.asarray(rank_list)
    cells = together.shape[-1]
    score: np.ndarray = (
        -together.sum(axis=0) if aggregate == "rank_sum" else np.round(np.log((cells + 1 - together) / cells).sum(axis=0), 12)
    )
    return score


def kept(rank_list: Sequence[np.ndarray], score: np.ndarray, keep: int, each: int) -> list[int]:
    """Choose the cells to keep. Returns their indices, best first by ``score``.

    The best ``each`` by every single measure are kept first, up to ``keep``; the best by ``score`` fill the rest. Ties are broken
    by the first measure, then by the order of the cells.
    """
    best = np.lexsort((rank_list[0], -score))
    seats: dict[int, None] = {}
    for ranks in rank_list:
        seats.update(dict.fromkeys(np.lexsort((-score, ranks))[:each].tolist()))
    chosen = dict.fromkeys(list(seats)[:keep])
    for place in best.tolist():
        if len(chosen) == keep:
            break
        chosen.setdefault(place)
    return [place for place in best.tolist() if place in chosen]


def kept_share(rank_list: Sequence[np.ndarray], aggregate: str, keep: int, each: int) -> np.ndarray:
    """How often each cell is kept, (cells,), by the ranks of the bootstrap samples, (RESAMPLES, cells) for each measure."""
    share = np.zeros(rank_list[0].shape[1])
    for sample in range(RESAMPLES):
        ranks = [of_measure[sample] for of_measure in rank_list]
        share[kept(ranks, aggregated(ranks, aggregate), keep, each)] += 1 / RESAMPLES
    return share


def rank_cells(
    settings: Mapping[str, Any], cells: Cells, values: Mapping[Measurement, float]
) -> tuple[list[str], list[dict[str, Any]], list[Cell]]:
    """Rank the cells of a round. Returns the columns of the ranking, its rows, one per cell, and the cells kept, best first.

    For each measure: ``score`` (mean over the repeats, of logarithms where it is never negative; more is better), ``se``
    (standard error of that mean; empty below two finite repeats), ``rank``. Then the aggregate, ``place`` by it, ``kept``, and
    ``kept_share``: how often the cell is kept when repeats are resampled (empty where every measure has a single one).
    """
    generator = np.random.default_rng(len(cells.cells))
    columns = list(Cells.columns)
    rows = [cells.keys(cell.number) for cell in cells.cells]
    decided, resampled, again = [], [], False
    for reference, measure_settings in settings["measures"].items():
        measure, repeats = get_measure(reference), measure_settings["repeats"]
        name = measure.name
        table = table_of_repeats(values, name, cells.ids, repeats)
        again = again or repeats > 1
        means = mean_score(measure, table, bootstrap_counts(repeats, RESAMPLES, generator))
        ranks = places(means)
        decided.append(ranks[0])
        resampled.append(ranks[1:])
        columns += [f"{name}_{part}" for part in ("score", "se", "rank")]
        errors = map(standard_error, on_scale(measure, table))
        for row, mean, error, rank in zip(rows, means[0], errors, ranks[0], strict=True):
            row |= {f"{name}_score": float(mean), f"{name}_se": error, f"{name}_rank": float(rank)}
    aggregate, keep, each = settings["aggregate"], min(settings["keep"], len(rows)), settings["each"]
    score = aggregated(decided, aggregate)
    chosen = kept(decided, score, keep, each)
    # With a single repeat of every measure there is nothing to resample.
    share = kept_share(resampled, aggregate, keep, each) if again else None
    order = np.lexsort((decided[0], -score))
    by_place = {int(index): place for place, index in enumerate(order, start=1)}
    for i, row in enumerate(rows):
        row |= {
            aggregate: float(score[i]),
            "place": by_place[i],
            "kept": int(i in chosen),
            "kept_share": "" if share is None else round(float(share[i]), 6),
        }
    columns += [aggregate, "place", "kept", "kept_share"]
    return columns, rows, [cells.cells[place] for place in chosen]


def shortlist_json(space: Space, cells: Sequence[Cell]) -> dict[str, Any]:
    """The state of a search narrowed to a list of cells, best first."""
    return {"space": space.reference, "cells": [cell._asdict() for cell in cells]}


def _number(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no cell's number")
    return value


def read_shortlist(path: str | os.PathLike[str], space: Space) -> Cells:
    """Read the cells of a shortlist, best first. Raises TenasError if it is damaged or of another space."""
    value = read_json(path, "shortlist")
    if value.get("space") != space.reference:
        raise TenasError(f"The shortlist {path} is of the space {value.get('space')!r}, not {space.reference}.")
    try:
        cells = tuple(Cell(_number(entry["number"]), space.parse(entry["arch"]).arch) for entry in value["cells"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TenasError(f"The shortlist {path} is damaged: it lists something other than cells.") from error
    if not cells or len({cell.number for cell in cells}) < len(cells):
        raise TenasError(f"The shortlist {path} is damaged: it has no cell, or one of them twice.")
    return Cells(space, cells)
