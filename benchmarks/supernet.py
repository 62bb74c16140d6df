"""Are an operator's scores in a supernet about accuracy? ``python -m benchmarks.supernet INDEX RUN [RUN ...]``

For each run (a folder of NAS-Bench-201 searches that prune, e.g. results/supernet-naswot), a row for each of its scores, those by
one measure and, where it has several, the aggregate of their ranks:

- Spearman's correlation, edge by edge, of the operators' scores with the mean accuracy (CIFAR-10, test) of all cells that have
  them there: the mean over edges and seeds, and in brackets the deviation over seeds of the mean over edges;
- the same for the operators' ranks averaged over the seeds, which is what more repeats would lead to;
- the same for these averaged ranks and the accuracy of the best cell that has the operator there, instead of the mean;
- the share of edges and seeds on which the best-scored operator is the one with the best mean accuracy;
- the mean accuracies on CIFAR-10, CIFAR-100 and ImageNet16-120 of the cells that were found, and their deviation over seeds.

A score is the harm that an operator's removal does to the measure, in the first round that tries it: round 1, or the edge's own
round where edges are settled one after another. INDEX is a benchmark index, or builtin.

Source: Xiang et al., Zero-Cost Operation Scoring in Differentiable Architecture Search (AAAI 2023), and its notebook op_strength.
Published there, with ``none`` among the operators and scores averaged over seeds, for TE-NAS, NASWOT and SynFlow: .30, .83 and
.93 with the mean accuracy; .44, .77 and .63 with the best, which is there that of a single training.
Traps: on every edge and all three data sets the mean accuracy puts the operators but ``none`` in the same order, pooling, skip,
1x1, 3x3, which is that of their parameters: a perfect correlation says no more than counting does, and leads to six 3x3
convolutions. Without ``none`` an edge has four operators, and six edges of random scores have a mean correlation with a deviation
of 0.23 (0.20 with five operators); the deviation over seeds knows nothing of that, as all seeds score the same operators.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from benchmarks.operator_mix import accuracies_by_operators, operators_of
from benchmarks.side_by_side import table
from tenas import layout
from tenas.benchmark import read_index
from tenas.errors import TenasError
from tenas.files import read_table
from tenas.settings.search import measures_of, read_settings, schedule

# By edge and operator: a score, or an accuracy.
Scores = Mapping[int, Mapping[str, float]]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of ranks, equal values at their mean rank; 0 where all of one side are equal and tell nothing."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    norm = (a @ a * (b @ b)) ** 0.5
    return float(a @ b / norm) if norm else 0.0


def worth_of(index: pd.DataFrame) -> dict[str, Scores]:
    """``mean`` and ``best``: the mean, and the best, CIFAR-10 test accuracy of the cells that have an operator on an edge."""
    operators = np.array([operators_of(arch) for arch in index["arch"]])
    accuracies = index["cifar10_test"].to_numpy()
    return {
        kind: {
            edge: {str(name): float(reduced(accuracies[column == name])) for name in np.unique(column)}
            for edge, column in enumerate(operators.T)
        }
        for kind, reduced in (("mean", np.mean), ("best", np.max))
    }


def correlation(scores: Scores, worth: Scores) -> float:
    """Spearman of each edge's scores with what their operators are worth there, averaged over the edges."""
    return float(np.mean([spearman(list(of.values()), [worth[edge][name] for name in of]) for edge, of in scores.items()]))


def best_kept(scores: Scores, worth: Scores) -> float:
    """Share of edges on which the best-scored operator is, of those scored there, the one that is worth most."""
    return float(np.mean([max(of, key=of.__getitem__) == max(of, key=worth[edge].__getitem__) for edge, of in scores.items()]))


def mean_ranks(seeds: Sequence[Scores]) -> Scores:
    """The operators' ranks within their edge, averaged over seeds: scores of a measure such as kappa may be infinite."""
    return {
        edge: dict(zip(names, np.mean([rankdata([of[edge][name] for name in names]) for of in seeds], axis=0), strict=True))
        for edge, names in seeds[0].items()
    }


def read_scores(run: Path, seed: int) -> dict[str, Scores]:
    """By name of the score, what a seed's search had measured of each operator when it was first tried. More is better.

    Raises TenasError where rankings are missing, or the search begins with something other than rounds of operators.
    """
    settings = read_settings(layout.path(layout.SEARCH, run))
    found: dict[str, dict[int, dict[str, float]]] = {}
    for round, entry in zip(schedule(settings), settings["rounds"], strict=True):
        if round.stage != "operators":
            continue
        measures = {name: measure for name, (measure, _) in measures_of(entry).items()}
        aggregate = entry["aggregate"] if len(measures) > 1 else None
        known = set(next(iter(found.values()), ()))
        needed = ("edge", "operator", *(f"{name}_change" for name in measures), *([aggregate] if aggregate else []))
        for row in read_table(layout.path(layout.RANKING, run, seed=seed, round=round.number), needed, "ranking"):
            edge, operator = int(row["edge"]), row["operator"]
            if edge in known:
                continue
            for name, measure in measures.items():
                # A change is whole minus rest: what falls with a measure of which less is better was in the way.
                harm = float(row[f"{name}_change"]) * (-1 if measure.lower_is_better else 1)
                found.setdefault(name, {}).setdefault(edge, {})[operator] = harm
            if aggregate:
                found.setdefault(aggregate, {}).setdefault(edge, {})[operator] = float(row[aggregate])
    if not found:
        raise TenasError(f"The run {run} has no round of operators: it scores none in a supernet.")
    return dict(found)


def _spread(values: np.ndarray) -> str:
    """Mean (deviation) over the first axis of (rows, columns), column by column; no deviation of a single row."""
    means, deviations = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else [None] * values.shape[1]
    texts = [f"{m:.2f}" + ("" if d is None else f" ({d:.2f})") for m, d in zip(means, deviations, strict=True)]
    return " / ".join(texts)


def rows_of(run: Path, worth: Mapping[str, Scores], accuracies: Mapping[tuple[str, ...], np.ndarray]) -> list[list[str]]:
    """The rows of a run. ``accuracies``: ACCURACIES by a cell's operators. Raises TenasError for a run without ended searches."""
    ended = sorted(run.glob(layout.GENOTYPE.format(seed="*")), key=lambda path: int(path.parent.name.removeprefix("seed")))
    if not ended:
        raise TenasError(f"The run {run} has no genotype: its searches have not ended.")
    seeds = [read_scores(run, int(path.parent.name.removeprefix("seed"))) for path in ended]
    found = _spread(np.array([accuracies[operators_of(path)] for path in ended]))
    rows = []
    for name in seeds[0]:
        scores = [seed[name] for seed in seeds]
        together = mean_ranks(scores)
        rows.append(
            [
                run.name,
                str(len(seeds)),
                name,
                _spread(np.array([[correlation(of, worth["mean"])] for of in scores])),
                f"{correlation(together, worth['mean']):.2f}",
                f"{correlation(together, worth['best']):.2f}",
                f"{np.mean([best_kept(of, worth['mean']) for of in scores]):.2f}",
                found,
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path, help="table of NAS-Bench-201, or builtin")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that prune a supernet")
    arguments = parser.parse_args()
    index = read_index(arguments.index)
    worth = worth_of(index)
    accuracies = accuracies_by_operators(index)
    rows = [row for run in arguments.runs for row in rows_of(run, worth, accuracies)]
    header = ["run", "seeds", "score", "Spearman, mean", "seeds averaged", "with the best", "best kept", "found, %"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
