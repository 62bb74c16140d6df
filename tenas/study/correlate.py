"""How well measures order cells: rank correlations with their accuracy, and intervals. No torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, rankdata

TESTS = ("_test", "accuracy")  # how the columns of a table end that cells are judged by
STATISTICS = ("kendall", "spearman", "ndcg")
COLUMNS = (
    "measure", "accuracy", "subset", "cells",
    *(f"{statistic}{end}" for statistic in STATISTICS for end in ("", "_low", "_high")),
    "repeats", "worst", "seconds",
)  # fmt: skip
KAPPA, REGIONS, RANK_SUM = "ntk_condition_number", "linear_regions", "rank_sum"
RESAMPLES = 1000
TOP = 10  # the best cells are a tenth of them
FEWEST = 10  # cells of which correlations are given


class Scores(NamedTuple):
    """A measure of a study's cells: ``values`` (cells, repeats), mean ``seconds`` of a measurement, which way it is good."""

    values: np.ndarray
    seconds: float
    lower_is_better: bool = False


def ndcg(scores: np.ndarray, gains: np.ndarray, places: int) -> float:
    """Normalised discounted cumulative gain of the order by ``scores``, descending, at its first ``places``.

    sum of gain / log2(1 + place), over that of the best order (Järvelin and Kekäläinen, ACM TOIS 2002). Cells with equal
    scores each have the mean of their gains, what a random order among them comes to (McSherry and Najork, ECIR 2008).
    """
    discounts = 1 / np.log2(np.arange(2, places + 2))
    _, group = np.unique(-scores, return_inverse=True)
    counts = np.bincount(group)
    means = np.repeat(np.bincount(group, gains) / counts, counts)
    best = np.sort(gains)[::-1][:places] @ discounts
    return float(means[:places] @ discounts / best) if best > 0 else np.nan


def statistics(scores: np.ndarray, accuracies: np.ndarray, gains: np.ndarray) -> tuple[float, float, float]:
    """Kendall's tau-b, Spearman's rho and nDCG at the best tenth of ``scores`` (more is better); NaN where all are equal."""
    places = max(1, len(scores) // TOP)
    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        return np.nan, np.nan, ndcg(scores, gains, places)
    tau = kendalltau(scores, accuracies, method="asymptotic").statistic
    rho = np.corrcoef(rankdata(scores), rankdata(accuracies))[0, 1]
    return float(tau), float(rho), ndcg(scores, gains, places)


def oriented(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """For each measure the places of the cells by its mean over the repeats, (cells,): more is better, ties share a mean place.

    Ranks and not values, because kappa of a singular kernel is infinite: the worst. With kappa and R comes their sum
    of ranks, TE-NAS's (algorithm 1), with its sign turned.
    """
    found = {}
    for name, measured in scores.items():
        mean = measured.values.mean(axis=1)
        found[name] = rankdata(-mean if measured.lower_is_better else mean)
    if KAPPA in found and REGIONS in found:
        found[RANK_SUM] = rankdata(found[KAPPA] + found[REGIONS])
    return found


def correlations(
    scores: Mapping[str, Scores], accuracies: Mapping[str, np.ndarray], seed: int, resamples: int = RESAMPLES
) -> list[dict]:
    """A row for each measure, accuracy and subset of cells, as COLUMNS. Signs: positive where better by the measure is better.

    ``scores``: measure -> values (cells, repeats), and seconds of a measurement. ``accuracies``: name -> (cells,), in %.
    Subsets: ``all``, and ``top``, the tenth of the cells with the best accuracy. A cell's gain in nDCG is the share of the
    subset's cells that are worse, so that a random order has about 0.5 and the best order 1.
    Intervals are those of 95 % by percentile bootstrap over the cells (all measures see the same resamples); NaN without any.
    ``seconds`` is the mean cost of a cell in one repeat, ``worst`` the number of cells whose mean is infinite.
    """
    places = oriented(scores)
    rows = []
    for accuracy, values in accuracies.items():
        best = np.argsort(-values, kind="stable")[: len(values) // TOP]
        for subset, chosen in (("all", np.arange(len(values))), ("top", np.sort(best))):
            if len(chosen) < FEWEST:
                continue
            accuracy_of = values[chosen]
            gains = (rankdata(accuracy_of, method="min") - 1) / (len(chosen) - 1)
            generator = np.random.default_rng(seed)
            samples = generator.integers(len(chosen), size=(resamples, len(chosen)))
            for name, all_places in places.items():
                scores_of = all_places[chosen]
                found = statistics(scores_of, accuracy_of, gains)
                again = [statistics(scores_of[s], accuracy_of[s], gains[s]) for s in samples]
                resampled = np.array(again).reshape(resamples, len(STATISTICS))
                rows.append(
                    {"measure": name, "accuracy": accuracy, "subset": subset, "cells": len(chosen)}
                    | {
                        f"{statistic}{end}": value
                        for i, statistic in enumerate(STATISTICS)
                        for end, value in zip(("", "_low", "_high"), (found[i], *_interval(resampled[:, i])), strict=True)
                    }
                    | _costs(scores, name)
                )
    return rows


def _interval(values: np.ndarray) -> Sequence[float]:
    finite = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(finite, [2.5, 97.5])] if len(finite) else (np.nan, np.nan)


def _costs(scores: Mapping[str, Scores], name: str) -> dict:
    parts = (KAPPA, REGIONS) if name == RANK_SUM else (name,)
    values = [scores[part].values for part in parts]
    return {
        "repeats": max(part.shape[1] for part in values),
        "worst": int(np.any([np.isinf(part).any(axis=1) for part in values], axis=0).sum()),
        "seconds": sum(scores[part].seconds for part in parts),
    }
