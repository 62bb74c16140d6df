"""Rank the trials of a round by their scores and prune the supernet (TE-NAS, algorithm 1).

SciPy's statistics take a second to be imported, and are when they are needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tenas.measures.catalogue import Measure, get_measure
from tenas.scoring.subjects import Measurement, Trials
from tenas.search.limits import Limits
from tenas.search.repeats import bootstrap_counts, rounded, standard_error, table_of_repeats
from tenas.spaces.base import Mask, Trial

RESAMPLES = 1000
# Fewer with limits, where each decision takes milliseconds: it asks which cells can still be reached.
RESAMPLES_WITHIN = 200


def change(whole: np.ndarray, rest: np.ndarray, kind: str, decimals: int | None, worst: float = -np.inf) -> np.ndarray:
    """Change of a measure by removing an operator, repeat by repeat. All arrays are (trials, repeats).

    ``kind``: ``log``: log(whole) - log(rest); ``relative``, as in the released code: (whole - rest) / |whole|; ``absolute``, as
    in the paper: whole - rest. The change is ``worst`` if the measure becomes infinitely bad (a kernel singular) or ceases to be
    infinitely good, -``worst`` the other way round, and NaN, not comparable, if it is the same infinity with and without the
    operator. ``worst``, which keeps an operator, is -inf for a measure of which less is better, and +inf for the others: so is an
    infinitely good value.
    """
    whole = np.broadcast_to(whole, rest.shape)
    result: np.ndarray
    with np.errstate(invalid="ignore", divide="ignore"):
        match kind:
            case "log":
                result = np.log(whole) - np.log(rest)
            case "relative":
                result = (whole - rest) / np.abs(whole)
            case "absolute":
                result = whole - rest
    if decimals is not None:
        result = np.round(result, decimals)
    # 1 for infinitely good values, -1 for infinitely bad ones.
    before, after = (np.isinf(values) * np.sign(values) * np.sign(worst) for values in (whole, rest))
    result[after < before] = worst
    result[after > before] = -worst
    result[(after == before) & np.isinf(rest)] = np.nan
    return result


def mean_change(changes: np.ndarray, weights: np.ndarray, worst: float = -np.inf, *, raw: bool = False) -> np.ndarray:
    """Weighted means over the repeats: (samples, trials) from changes (trials, repeats) and counts (samples, repeats).

    A trial that makes a kernel singular in any repeat is ``worst`` (see ``change``); otherwise, one that ends a singularity in
    any repeat is -``worst``. NaN repeats are left out; a trial with no others is ``worst``, so that nothing is pruned without
    evidence. ``raw``: as in ``rounded``.
    """
    finite = np.isfinite(changes)
    counts = weights @ finite.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = rounded(weights @ np.where(finite, changes, 0.0).T / counts, changes, raw=raw)
    means[counts == 0] = worst
    means[weights @ (changes == -worst).T.astype(float) > 0] = -worst
    means[weights @ (changes == worst).T.astype(float) > 0] = worst
    return means


def ranks(means: np.ndarray, lower_is_better: bool, method: str) -> np.ndarray:
    """Rank along the last axis, 1 for the trial whose removal improves the measure most (or harms it least)."""
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(-means if lower_is_better else means, method=method, axis=-1)
    return found


def aggregated(rank_list: list[np.ndarray], aggregate: str) -> np.ndarray:
    """Aggregate the ranks by all measures to one number per trial, (samples, trials); the smallest is pruned first.

    ``rank_sum``: as in TE-NAS (algorithm 1). ``log_rank_sum``: sum of logarithms, which gives more weight to the first places.
    """
    together = np.asarray(rank_list)
    total: np.ndarray = together.sum(axis=0) if aggregate == "rank_sum" else np.round(np.log(together).sum(axis=0), 12)
    return total


def pruned(rank_list: list[np.ndarray], rivals: list[tuple[list[int], int]], aggregate: str) -> np.ndarray:
    """Choose the trials to prune, as booleans (samples, trials): the smallest aggregated ranks in each group of rivals.

    Ties are broken by the rank in the first measure, as in the released code, then by the order of the trials.
    """
    total = aggregated(rank_list, aggregate)
    gone = np.zeros(total.shape, bool)
    for group, quota in rivals:
        order = np.lexsort((rank_list[0][:, group], total[:, group]), axis=-1)
        np.put_along_axis(gone, np.asarray(group)[order[:, :quota]], True, axis=-1)
    return gone


def pruned_within(
    rank_list: list[np.ndarray], rivals: list[tuple[list[int], int]], aggregate: str, trials: Sequence[Trial], mask: Mask,
    limits: Limits,
) -> np.ndarray:  # fmt: skip
    """``pruned`` within ``limits``: a trial that every fitting cell needs is kept, and the next one is pruned instead.

    Groups are decided in order. As long as the mask spans a fitting cell, each group has enough trials that this cell does not
    need.
    """
    total = aggregated(rank_list, aggregate)
    gone = np.zeros(total.shape, bool)
    for sample in range(len(total)):
        here = mask
        for group, quota in rivals:
            order = np.lexsort((rank_list[0][sample, group], total[sample, group]))
            left = quota
            for index in (group[place] for place in order):
                if left and limits.reachable(without := here.without([trials[index]])):
                    here, left, gone[sample, index] = without, left - 1, True
    return gone


class Evidence(NamedTuple):
    """Evidence of a measure about the trials of a round.

    ``rest``: values without each trial, ``changes``: what removing it changes, both (trials, repeats). ``means``: of the changes,
    and ``ranks`` by them, both (1 + RESAMPLES, trials): over all repeats, then over each bootstrap sample.
    """

    rest: np.ndarray
    changes: np.ndarray
    means: np.ndarray
    ranks: np.ndarray

    def columns(self, name: str) -> list[dict[str, Any]]:
        """The columns of the ranking for the measure ``name``, by trial."""
        return [
            {
                f"{name}_change": float(self.means[0, trial]),
                f"{name}_se": standard_error(self.changes[trial]),
                f"{name}_n": int(np.isfinite(self.changes[trial]).sum()),
                f"{name}_singular": int(np.isinf(self.rest[trial]).sum()),
                f"{name}_rank": float(self.ranks[0, trial]),
            }
            for trial in range(len(self.changes))
        ]


def weigh(
    measure: Measure,
    repeats: int,
    settings: Mapping[str, Any],
    subjects: Trials,
    values: Mapping[Measurement, float],
    generator: np.random.Generator,
) -> Evidence:
    """Compare the supernet with and without each trial by one measure. ``settings``: of the round."""
    numbers = range(1, len(subjects.tried) + 1)
    whole = table_of_repeats(values, measure.name, [subjects.whole(number) for number in numbers], repeats)
    rest = table_of_repeats(values, measure.name, numbers, repeats)
    worst = -np.inf if measure.lower_is_better else np.inf
    changes = change(whole, rest, settings["change"], settings["decimals"], worst)
    counts = bootstrap_counts(repeats, RESAMPLES, generator)
    means = mean_change(changes, counts, worst, raw=settings["change"] == "absolute")
    return Evidence(rest, changes, means, ranks(means, measure.lower_is_better, settings["ranks"]))


def rank_round(
    settings: Mapping[str, Any], subjects: Trials, values: Mapping[Measurement, float], limits: Limits | None = None
) -> tuple[list[str], list[dict[str, Any]], Mask]:
    """Rank the trials of a round and prune. Returns the columns of the ranking, its rows, one per trial, and the next mask.

    ``settings``: of the round. For each measure: ``change`` (mean over the repeats), ``se`` (standard error of that mean; empty
    below two finite repeats), ``n`` (repeats that could be compared), ``singular`` (repeats in which the rest was infinite),
    ``rank``. Then ``rank_sum`` (or ``log_rank_sum``), ``pruned``, and ``pruned_share``: how often the trial is pruned when the
    decision is repeated on bootstrap samples of the repeats (RESAMPLES of them; empty where every measure has a single one). The
    trials of a sample have the same repeats, as they share weights and, unless each draws its own, images. A decision is certain
    at a share near 1, and a coin toss at a share near 1 over the number of rivals.
    """
    mask, trials, aggregate = subjects.mask, subjects.tried, settings["aggregate"]
    rivals = mask.space.rivals(trials, subjects.round)
    generator = np.random.default_rng(subjects.round.number)
    columns = list(Trials.columns)
    rows = [subjects.keys(number) for number in range(1, len(trials) + 1)]
    decided, resampled = [], []
    for reference, measure_settings in settings["measures"].items():
        measure = get_measure(reference)
        evidence = weigh(measure, measure_settings["repeats"], settings, subjects, values, generator)
        decided.append(evidence.ranks[:1])
        resampled.append(evidence.ranks[1:])
        columns += [f"{measure.name}_{part}" for part in ("change", "se", "n", "singular", "rank")]
        for row, of_measure in zip(rows, evidence.columns(measure.name), strict=True):
            row |= of_measure
    if limits is None:
        gone, again = pruned(decided, rivals, aggregate), pruned(resampled, rivals, aggregate)
    else:
        gone = pruned_within(decided, rivals, aggregate, trials, mask, limits)
        fewer = [ranks[:RESAMPLES_WITHIN] for ranks in resampled]
        again = pruned_within(fewer, rivals, aggregate, trials, mask, limits)
    # With a single repeat of every measure there is nothing to resample.
    resampled_any = any(of_measure["repeats"] > 1 for of_measure in settings["measures"].values())
    share = again.mean(axis=0) if resampled_any else None
    for i, (row, total) in enumerate(zip(rows, aggregated(decided, aggregate)[0], strict=True)):
        row |= {aggregate: float(total), "pruned": int(gone[0, i]), "pruned_share": "" if share is None else float(share[i])}
    columns += [aggregate, "pruned", "pruned_share"]
    return columns, rows, mask.without(trial for trial, go in zip(trials, gone[0], strict=True) if go)
