"""How fast is a search? ``python -m benchmarks.search [--data data/digits] [--space nas-bench-201] [--preset released]``

Pairs, in one run, a whole search (``tenas search``, a worker process a core) with the same search the usual way: one
backward pass a sample with a thread a core, and for every trial and repeat both the whole network and the rest. The
usual way takes long, so it is timed over a seeded sample of trials of each round, ``--trials`` of them, on the masks
that the search went through, and scaled up to all trials and repeats; both figures are printed. Linear regions are
counted by our function in both, which is kind to the usual way.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from tenas.search.score import Scorer
from tenas.search.stages import measurement_count, search, search_rounds
from tenas.search.table import Measurement

from benchmarks.side_by_side import table
from tenas.data import read_images
from tenas.measures import condition_number
from tenas.measures.ntk import ntk_gram_by_loop
from tenas.settings import search_settings
from tenas.spaces import get_space

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
KAPPA = "ntk_condition_number"


def time_usual(scorer: Scorer, trial: int) -> float:
    """Seconds for one repeat of a trial the usual way: both measures, of the whole and of the rest."""
    start = time.perf_counter()
    for name in scorer.settings["measures"]:
        for number in (0, trial):
            if name == KAPPA:
                measure = scorer.measures[name]
                measure.network.set_mask(scorer.masks[number])
                condition_number(ntk_gram_by_loop(measure.network, measure.batch), dtype=torch.float32)
            else:
                scorer(Measurement(number, name, 0))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/digits"), help="folder of a prepared data set")
    parser.add_argument("--space", default="nas-bench-201")
    parser.add_argument("--preset", default="released")
    parser.add_argument("--trials", type=int, default=2, help="trials of each round that the usual way is timed on")
    arguments = parser.parse_args()

    settings = search_settings(arguments.space, arguments.preset)
    images = arguments.data / "images.npy"
    space = get_space(settings["space"])
    pixels, card = read_images(images)
    repeats = max(measure["repeats"] for measure in settings["measures"].values())
    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        search(settings, images, 0, folder, threads=CORES, device="cpu")
        ours = time.perf_counter() - start
        rows, usual, timed = [], 0.0, 0
        for this_round in search_rounds(settings):
            mask = space.read_mask(Path(folder) / f"round{this_round.number - 1}" / "mask.json")
            scorer = Scorer(settings, pixels, card, mask, this_round, 0, "cpu")
            for name in settings["measures"]:
                scorer(Measurement(0, name, 0))  # draws weights and inputs, and warms up
            sample = random.Random(this_round.number).sample(range(1, this_round.trials + 1), arguments.trials)
            seconds = sum(time_usual(scorer, trial) for trial in sample) / len(sample)
            timed += len(sample)
            usual += seconds * this_round.trials * repeats
            rows.append([this_round.number, this_round.trials, f"{seconds:.2f}", f"{seconds * this_round.trials * repeats:.0f}"])
    print(f"{arguments.space}, preset {arguments.preset}, {CORES} cores, {measurement_count(settings)} measurements\n")
    print(table(["round", "trials", "usual way, s a trial and repeat", "s a round"], rows))
    print(f"\nThe usual way, scaled up from {timed} timed trials: {usual:.0f} s. Ours, the whole search: {ours:.1f} s. ", end="")
    print(f"Ratio: {usual / ours:.1f}.")


if __name__ == "__main__":
    main()
