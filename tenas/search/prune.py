"""From the scores of a round to a ranking with its errors, and to the next mask (TE-NAS, algorithm 1)."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from tenas.search.table import RANKING_KEYS, Measurement, trial_keys
from tenas.settings import measure_traits
from tenas.spaces import Mask, Round, Space

RESAMPLES = 1000


def change(whole: np.ndarray, rest: np.ndarray, kind: str, decimals: int | None, worst: float = -np.inf) -> np.ndarray:
    """What taking the operator away does to a measure, repeat by repeat: (trials, repeats) from (repeats,) and (trials, repeats).

    ``log``: log(whole) - log(rest). ``relative``: (whole - rest) / |whole|. ``absolute``: whole - rest; the last is the
    paper's, the second the released code's. A kernel that turns singular is ``worst``, one that ceases to be singular the
    opposite; where both are singular there is nothing to compare and the change is NaN. ``worst``, the change of an
    operator that must not go, is -inf for a measure of which less is better, and +inf for the others, whose infinity is -inf.
    """
    whole = np.broadcast_to(whole, rest.shape)
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
    result[np.isfinite(whole) & np.isinf(rest)] = worst
    result[np.isinf(whole) & np.isfinite(rest)] = -worst
    result[np.isinf(whole) & np.isinf(rest)] = np.nan
    return result


def mean_change(changes: np.ndarray, weights: np.ndarray, worst: float = -np.inf) -> np.ndarray:
    """Weighted means over the repeats: (samples, trials) from changes (trials, repeats) and counts (samples, repeats).

    A trial that makes any kernel singular is ``worst`` (see ``change``); else one that mends any is the opposite. Repeats
    without a comparison are left out; a trial without any is ``worst`` too, so that nothing is pruned for want of evidence.
    """
    finite = np.isfinite(changes)
    counts = weights @ finite.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Means of decimals tie only after the last bits are gone: 0.1 + 0.2 and 0.3 are the same change.
        means = np.round(weights @ np.where(finite, changes, 0.0).T / counts, 12)
    means[counts == 0] = worst
    means[weights @ (changes == -worst).T.astype(float) > 0] = -worst
    means[weights @ (changes == worst).T.astype(float) > 0] = worst
    return means


def ranks(means: np.ndarray, lower_is_better: bool, method: str) -> np.ndarray:
    """Ranks along the last axis, 1 for the trial whose removal does the measure most good (or least harm)."""
    return rankdata(-means if lower_is_better else means, method=method, axis=-1)


def pruned(rank_list: list[np.ndarray], rivals: list[tuple[list[int], int]]) -> np.ndarray:
    """Which trials go: in each group of rivals the smallest sums of ranks. (samples, trials) booleans.

    Equal sums go to the smaller rank in the first measure, as in the released code, then to the earlier trial.
    """
    total = np.sum(rank_list, axis=0)
    gone = np.zeros(total.shape, bool)
    for group, quota in rivals:
        order = np.lexsort((rank_list[0][:, group], total[:, group]), axis=-1)
        np.put_along_axis(gone, np.asarray(group)[order[:, :quota]], True, axis=-1)
    return gone


def rank_round(
    settings: Mapping, space: Space, mask: Mask, round: Round, values: Mapping[Measurement, float]
) -> tuple[list[str], list[dict], Mask]:
    """The ranking of a round: its columns, a row a trial, and the mask that its decisions lead to.

    For each measure: ``change`` (mean over the repeats), ``se`` (standard error of that mean; empty below two finite
    repeats), ``n`` (repeats that could be compared), ``singular`` (repeats in which the rest was infinite), ``rank``.
    Then ``rank_sum``, ``pruned``, and ``pruned_share``: how often the trial is pruned when the decision is taken again
    on resampled repeats (bootstrap, RESAMPLES of them; all trials keep their repeats together, as they share weights
    and images). A decision is sure when its share is near 1, and a coin toss when it's near 1 over the number of
    rivals.
    """
    trials = space.trials(mask, round)
    rivals = space.rivals(trials, round)
    generator = np.random.default_rng(round.number)
    columns = list(RANKING_KEYS)
    rows = [trial_keys(space, round, number, trial) for number, trial in enumerate(trials, start=1)]
    decided, resampled = [], []
    for name, measure in settings["measures"].items():
        repeats = measure["repeats"]
        table = np.array([[values[t, name, r] for r in range(repeats)] for t in range(len(trials) + 1)])
        lower_is_better = measure_traits()[name].lower_is_better
        worst = -np.inf if lower_is_better else np.inf
        changes = change(table[0], table[1:], settings["change"], settings["decimals"], worst)
        samples = np.vstack([np.ones(repeats), generator.multinomial(repeats, np.full(repeats, 1 / repeats), RESAMPLES)])
        means = mean_change(changes, samples, worst)
        all_ranks = ranks(means, lower_is_better, settings["ranks"])
        decided.append(all_ranks[:1])
        resampled.append(all_ranks[1:])
        columns += [f"{name}_{part}" for part in ("change", "se", "n", "singular", "rank")]
        for i, row in enumerate(rows):
            finite = changes[i][np.isfinite(changes[i])]
            row |= {
                f"{name}_change": float(means[0, i]),
                f"{name}_se": float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else "",
                f"{name}_n": len(finite),
                f"{name}_singular": int(np.isinf(table[1 + i]).sum()),
                f"{name}_rank": float(all_ranks[0, i]),
            }
    gone = pruned(decided, rivals)[0]
    share = pruned(resampled, rivals).mean(axis=0)
    for i, row in enumerate(rows):
        row |= {
            "rank_sum": float(sum(r[0, i] for r in decided)),
            "pruned": int(gone[i]),
            "pruned_share": float(share[i]),
        }
    columns += ["rank_sum", "pruned", "pruned_share"]
    return columns, rows, mask.without(trial for trial, go in zip(trials, gone, strict=True) if go)
