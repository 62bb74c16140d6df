"""How well measures rank cells: rank correlations with accuracy, and their intervals. No torch.

SciPy's statistics take a second to be imported, and are when they are needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tenas.measures.catalogue import Measure, get_measure
from tenas.search.shortlist import aggregated, mean_score, places

TESTS = ("_test", "accuracy")  # suffixes of the accuracies that cells are judged by
STATISTICS = ("kendall", "spearman", "ndcg")
COLUMNS = (
    "measure", "accuracy", "subset", "cells",
    *(f"{statistic}{end}" for statistic in STATISTICS for end in ("", "_low", "_high")),
    "single", "single_sd", "repeats", "worst", "seconds",
)  # fmt: skip
KAPPA, REGIONS, RANK_SUM = "ntk_condition_number", "linear_regions", "rank_sum"
RESAMPLES = 1000
TOP = 10  # the best tenth of the cells is a subset of its own
FEWEST = 10  # cells that a correlation needs
MOST_IN_PAIRS = 1000  # cells up to which matrices of all pairs are faster than one sort per resample


class Scores(NamedTuple):
    """Scores of a study's cells by one measure: ``values`` (cells, repeats), and the mean ``seconds`` per measurement."""

    measure: Measure
    values: np.ndarray
    seconds: float


def ndcg(scores: np.ndarray, gains: np.ndarray, places: int) -> float:
    """Normalised discounted cumulative gain of the order by ``scores``, descending, at its first ``places``.

    sum of gain / log2(1 + place), divided by that of the best order (Järvelin and Kekäläinen, ACM TOIS 2002). Cells with equal
    scores each get the mean of their gains, the expectation of a random order among them (McSherry and Najork, ECIR 2008).
    """
    discounts = 1 / np.log2(np.arange(2, places + 2))
    _, group = np.unique(-scores, return_inverse=True)
    counts = np.bincount(group)
    means = np.repeat(np.bincount(group, gains) / counts, counts)
    best = np.sort(gains)[::-1][:places] @ discounts
    return float(means[:places] @ discounts / best) if best > 0 else np.nan


def statistics(scores: np.ndarray, accuracies: np.ndarray, gains: np.ndarray) -> tuple[float, float, float]:
    """Kendall's tau-b, Spearman's rho and nDCG at the best tenth of ``scores`` (more is better); NaN where all are equal."""
    from scipy.stats import kendalltau, rankdata

    places = max(1, len(scores) // TOP)
    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        return np.nan, np.nan, ndcg(scores, gains, places)
    tau = kendalltau(scores, accuracies, method="asymptotic").statistic
    rho = np.corrcoef(rankdata(scores), rankdata(accuracies))[0, 1]
    return float(tau), float(rho), ndcg(scores, gains, places)


def resampled(scores: np.ndarray, accuracies: np.ndarray, gains: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """``statistics`` of each of the ``samples`` (resamples, cells) of the cells, (resamples, 3)."""
    from scipy.stats import rankdata

    found = np.full((len(samples), len(STATISTICS)), np.nan)
    drawn_scores, drawn_accuracies = scores[samples], accuracies[samples]
    top = max(1, samples.shape[1] // TOP)
    found[:, 2] = [ndcg(*pair, top) for pair in zip(drawn_scores, gains[samples], strict=True)]
    varied = (np.ptp(drawn_scores, axis=1) > 0) & (np.ptp(drawn_accuracies, axis=1) > 0)
    found[varied, 0] = _taus(scores, accuracies, samples[varied])
    ranks = zip(rankdata(drawn_scores[varied], axis=1), rankdata(drawn_accuracies[varied], axis=1), strict=True)
    found[varied, 1] = [np.corrcoef(*pair)[0, 1] for pair in ranks]
    return found


def _taus(scores: np.ndarray, accuracies: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each sample of the cells.

    Pairs of cells are compared once for all samples: in a sample, a pair counts as often as the product of how often each
    of its cells was drawn, and a cell is tied with itself.
    """
    from scipy.stats import kendalltau

    if len(scores) > MOST_IN_PAIRS:
        return np.array([kendalltau(scores[s], accuracies[s], method="asymptotic").statistic for s in samples])
    counts = np.zeros((len(samples), len(scores)))
    np.add.at(counts, (np.arange(len(samples))[:, None], samples), 1)
    by_score, by_accuracy = (np.sign(values[:, None] - values) for values in (scores, accuracies))
    agreeing, apart, apart_in_accuracy = (
        ((counts @ pairs) * counts).sum(axis=1) / 2 for pairs in (by_score * by_accuracy, abs(by_score), abs(by_accuracy))
    )
    taus: np.ndarray = np.clip(agreeing / np.sqrt(apart) / np.sqrt(apart_in_accuracy), -1, 1)
    return taus


def oriented(
    scores: Mapping[str, Scores], together: Sequence[Sequence[str]] = (), repeat: int | None = None
) -> dict[str, np.ndarray]:
    """Places of the cells by the mean of each measure over the repeats, (cells,): more is better, ties share a mean place.

    The mean is that of a round of cells (tenas.search.shortlist.mean_score): of logarithms if the measure is never negative,
    and the worst value if a kernel is singular. ``repeat``: use that repeat alone; a measure with fewer starts over at its first.
    ``together``: sets of measures, ranked by the sum of their log ranks and of their ranks. With both kappa and R, the sum of
    their ranks (TE-NAS, algorithm 1) is included, with its sign reversed.
    """
    from scipy.stats import rankdata

    ranks = {}
    for name, (measure, values, _) in scores.items():
        weights = np.ones(values.shape[1]) if repeat is None else np.eye(values.shape[1])[repeat % values.shape[1]]
        ranks[name] = places(mean_score(measure, values, weights[None]))[0]
    found = {name: len(worst_first) + 1 - worst_first for name, worst_first in ranks.items()}
    for name, (parts, aggregate) in _aggregates(scores, together).items():
        found[name] = rankdata(aggregated([ranks[part] for part in parts], aggregate))
    return found


def _aggregates(scores: Mapping[str, Scores], together: Sequence[Sequence[str]]) -> dict[str, tuple[Sequence[str], str]]:
    """Name of a ranking by several measures -> these measures, and how their ranks are combined."""
    found: dict[str, tuple[Sequence[str], str]] = {}
    # A user's measure may have the name of another.
    if all(name in scores and scores[name][0] is get_measure(name) for name in (KAPPA, REGIONS)):
        found[RANK_SUM] = (KAPPA, REGIONS), "rank_sum"
    for parts in together:
        for aggregate in ("log_rank_sum", "rank_sum"):
            found[f"{aggregate}({', '.join(parts)})"] = parts, aggregate
    return found


def correlations(
    scores: Mapping[str, Scores],
    accuracies: Mapping[str, np.ndarray],
    seed: int,
    *,
    together: Sequence[Sequence[str]] = (),
    valid: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """One row per measure, accuracy and subset of cells, as COLUMNS. A positive sign: better by the measure is more accurate.

    ``scores``: by name of the measure. ``accuracies``: name -> (cells,), in %. ``together``: as in ``oriented``.
    Subsets: ``all``; ``valid``, those that ``valid`` (cells,) marks, unless it marks all; ``top``, the tenth of the cells with
    the best accuracy. The gain of a cell in nDCG is the share of worse cells in the subset: a random order has about 0.5,
    the best order 1.
    Intervals are 95 % percentile bootstrap intervals over the cells, the same resamples for all measures; NaN without resamples.
    ``single``: mean of the taus of single repeats, each with its own weights and images, and ``single_sd`` their standard
    deviation; NaN with one repeat. ``seconds``: mean cost of a cell over all repeats. ``worst``: number of cells with an infinite
    value.
    """
    from scipy.stats import rankdata

    places = oriented(scores, together)
    draws = max(measured.values.shape[1] for measured in scores.values())
    single = [oriented(scores, together, repeat) for repeat in range(draws)] if draws > 1 else []
    aggregates = _aggregates(scores, together)
    rows = []
    for accuracy, values in accuracies.items():
        best = np.argsort(-values, kind="stable")[: len(values) // TOP]
        subsets = {"all": np.arange(len(values)), "top": np.sort(best)}
        if valid is not None and not valid.all():
            subsets["valid"] = np.flatnonzero(valid)
        for subset, chosen in subsets.items():
            if len(chosen) < FEWEST:
                continue
            accuracy_of = values[chosen]
            gains = (rankdata(accuracy_of, method="min") - 1) / (len(chosen) - 1)
            generator = np.random.default_rng(seed)
            samples = generator.integers(len(chosen), size=(resamples, len(chosen)))
            for name, all_places in places.items():
                scores_of = all_places[chosen]
                costs = _costs([scores[part] for part in aggregates.get(name, ((name,), ""))[0]])
                found = statistics(scores_of, accuracy_of, gains)
                again = resampled(scores_of, accuracy_of, gains, samples)
                rows.append(
                    {"measure": name, "accuracy": accuracy, "subset": subset, "cells": len(chosen)}
                    | {
                        f"{statistic}{end}": value
                        for i, statistic in enumerate(STATISTICS)
                        for end, value in zip(("", "_low", "_high"), (found[i], *_interval(again[:, i])), strict=True)
                    }
                    | _of_draws([draw[name][chosen] for draw in single], accuracy_of, int(costs["repeats"]))
                    | costs
                )
    return rows


def _interval(values: np.ndarray) -> Sequence[float]:
    finite = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(finite, [2.5, 97.5])] if len(finite) else (np.nan, np.nan)


def _of_draws(draws: Sequence[np.ndarray], accuracies: np.ndarray, repeats: int) -> dict[str, float]:
    """Mean and standard deviation of Kendall's tau over the ``repeats`` of a measure; NaN for fewer than two."""
    from scipy.stats import kendalltau

    taus = [kendalltau(places, accuracies, method="asymptotic").statistic for places in draws[:repeats]]
    known = [tau for tau in taus if np.isfinite(tau)]
    several = len(known) > 1
    return {
        "single": float(np.mean(known)) if several else np.nan,
        "single_sd": float(np.std(known, ddof=1)) if several else np.nan,
    }


def _costs(parts: Sequence[Scores]) -> dict[str, float]:
    return {
        "repeats": max(part.values.shape[1] for part in parts),
        "worst": int(np.any([np.isinf(part.values).any(axis=1) for part in parts], axis=0).sum()),
        "seconds": sum(part.seconds * part.values.shape[1] for part in parts),
    }
