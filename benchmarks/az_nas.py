"""Rank cells of NAS-Bench-201 as AZ-NAS does, and compare the rank correlation with the published one.

    python -m benchmarks.az_nas --table data/downloads/nb201.csv.gz --cells 1000 --out results/az_nas.csv

Each cell of a seeded sample is built with 16 channels and 5 cells per stage, initialised with Kaiming normal weights (fan in),
and measured in training mode on one batch of Gaussian 32x32 images, the same for all cells. ``--out`` gets one row per cell as
soon as it is measured; cells that it has are not measured again, so that a run can be stopped and a sample be enlarged.

Published, over all 15,625 cells (Lee and Ham, CVPR 2024; Kendall's tau with the test accuracies on CIFAR-10, CIFAR-100 and
ImageNet16-120): sum of log ranks .741 / .723 / .710, sum of ranks .697 / .681 / .663, FLOPs alone .578 / .551 / .517.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, rankdata

from benchmarks.side_by_side import table
from tenas.measures import az_nas_scores, flops
from tenas.networks import Network, initialise

ACCURACIES = ("cifar10_test", "cifar100_test", "imagenet16_test")
MEASURES = ("expressivity", "progressivity", "trainability", "flops")
COLUMNS = ("index", "arch", *MEASURES, "seconds")
RESAMPLES = 500


def sum_of_log_ranks(columns: np.ndarray) -> np.ndarray:
    """sum over measures of log(rank / m) of (m, measures): rank m the largest of m, ties at their mean rank, NaN as -inf.

    Source: AZ-NAS's non-linear aggregation of ranks. A cell that any one measure puts last falls far behind.
    """
    return np.log(ranks(columns) / len(columns)).sum(axis=1)


def ranks(columns: np.ndarray) -> np.ndarray:
    """1 to m for each column of (m, measures), m the largest, ties at their mean, NaN as -inf."""
    return rankdata(np.where(np.isnan(columns), -np.inf, columns), axis=0)


def measure_cells(sample: pd.DataFrame, out: Path, *, batch: int, channels: int, cells: int, seed: int) -> pd.DataFrame:
    """The scores of the sampled cells, one row each, measured where ``out`` lacks them."""
    known = set(pd.read_csv(out)["index"]) if out.exists() else set()
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not known:
            writer.writerow(COLUMNS)
        for row in sample.itertuples(index=False):
            if row.index in known:
                continue
            network = Network(row.arch, channels=channels, cells=cells, classes=10)
            initialise(network, "kaiming_fan_in", seed)
            start = time.perf_counter()
            scores = az_nas_scores(network, images)
            writer.writerow((row.index, row.arch, *scores, flops(network, images), f"{time.perf_counter() - start:.3f}"))
            file.flush()
    return pd.read_csv(out).set_index("index").loc[sample["index"]]


def correlations(scores: pd.DataFrame, accuracies: pd.DataFrame) -> list[list[str]]:
    """Kendall's tau with its bootstrap standard error over cells, one row per ranking, one column per accuracy."""
    columns = scores[list(MEASURES)].to_numpy(float)
    rankings = {
        "log ranks": sum_of_log_ranks,
        "ranks": lambda values: ranks(values).sum(axis=1),
        **{name: lambda values, place=place: ranks(values)[:, place] for place, name in enumerate(MEASURES)},
    }
    generator = np.random.default_rng(0)
    samples = [generator.integers(len(columns), size=len(columns)) for _ in range(RESAMPLES)]
    rows = []
    for name, ranking in rankings.items():
        row = [name]
        for accuracy in ACCURACIES:
            truth = accuracies[accuracy].to_numpy()
            score = ranking(columns)
            resampled = [kendalltau(score[s], truth[s]).statistic for s in samples]
            row.append(f"{kendalltau(score, truth).statistic:.3f} ({np.std(resampled):.3f})")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", required=True, help="accuracies of all cells, as CSV")
    parser.add_argument("--cells", type=int, default=1, help="size of the sample")
    parser.add_argument("--out", type=Path, default=Path("az_nas.csv"), help="scores, one row per cell; continued if it exists")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--stage-cells", type=int, default=5, help="cells per stage")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images; the order of the sample is always the same")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    accuracies = pd.read_csv(arguments.table)
    # The first cells of one fixed permutation: a larger sample holds every smaller one.
    sample = accuracies.iloc[np.random.default_rng(0).permutation(len(accuracies))[: arguments.cells]]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    scores = measure_cells(
        sample,
        arguments.out,
        batch=arguments.batch,
        channels=arguments.channels,
        cells=arguments.stage_cells,
        seed=arguments.seed,
    )
    print(f"{len(scores)} cells, {scores['seconds'].mean():.2f} s per cell")
    if len(scores) > 1:
        print(table(("ranking", *ACCURACIES), correlations(scores, sample)))


if __name__ == "__main__":
    main()
