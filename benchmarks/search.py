"""How fast is a search? ``python -m benchmarks.search [--data data/digits] [--space nas-bench-201] [--preset released]``

Pairs, in one run, a whole search (``tenas search``, one worker process per core) with the same search the usual way: one
backward pass per sample with one thread per core, and for every trial and repeat both the whole network and the rest. The
usual way takes long, so it is timed over a seeded sample of trials of each round, ``--trials`` of them, on the masks
that the search went through, and scaled up to all trials and repeats; both figures are printed. Linear regions are
counted by our function in both, which is kind to the usual way.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.side_by_side import CORES, table
from tenas import layout
from tenas.errors import TenasError
from tenas.measures import condition_number
from tenas.measures.ntk import ntk_gram_by_loop
from tenas.scoring.score import Scorer, Task
from tenas.scoring.shard import read_inputs
from tenas.scoring.subjects import Measurement, Trials, plan
from tenas.scoring.workers import Workers
from tenas.settings import schedule, search_settings
from tenas.spaces import get_space
from tenas.stages.search import search_seed

KAPPA = "ntk_condition_number"


def scorers_of(
    subjects: Trials, measures: Mapping, names: tuple[int, ...], pixels: np.ndarray, card: Mapping
) -> dict[str, Scorer]:
    """For each measure one that has drawn its weights and inputs, and is warm."""
    found = {}
    for reference, settings in measures.items():
        scorer = Scorer(Task({reference: settings}, subjects, names), pixels, card, "cpu")
        (name,) = scorer.measures
        scorer(Measurement(0, name, 0))
        found[name] = scorer
    return found


def time_usual(scorers: Mapping[str, Scorer], trial: int) -> float:
    """Seconds for one repeat of a trial the usual way: all measures, of the whole and of the rest."""
    start = time.perf_counter()
    for name, scorer in scorers.items():
        for number in (0, trial):
            if name == KAPPA:
                condition_number(
                    ntk_gram_by_loop(scorer.network(name, number, 0), *scorer.inputs(name, number, 0)), dtype=torch.float32
                )
            else:
                scorer(Measurement(number, name, 0))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/digits"), help="folder of a prepared data set")
    parser.add_argument("--space", default="nas-bench-201", help="name of a space, or path/to/file.py:object")
    parser.add_argument("--preset", default="released", help="name of a preset that only prunes, or a YAML file")
    parser.add_argument("--trials", type=int, default=2, help="trials of each round that the usual way is timed on")
    arguments = parser.parse_args()

    settings = search_settings(arguments.space, arguments.preset)
    rounds = schedule(settings)
    if {round.stage for round in rounds} - {"operators", "edges"}:
        raise TenasError(f"The preset {arguments.preset} does more than prune: there is no usual way to time it against.")
    space, images = get_space(settings["space"]), arguments.data / layout.IMAGES
    torch.set_num_threads(CORES)
    rows, usual, timed, measurements = [], 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder, Workers(CORES) as workers:
        start = time.perf_counter()
        search_seed(settings, arguments.data, 0, Path(folder), workers=workers, device="cpu")
        ours = time.perf_counter() - start
        for this_round, entry in zip(rounds, settings["rounds"], strict=True):
            mask = space.read_mask(layout.path(layout.MASK, folder, seed=0, round=this_round.number - 1))
            subjects = Trials(mask, this_round)
            measurements += len(plan(entry["measures"], subjects.ids))
            scorers = scorers_of(subjects, entry["measures"], (0, this_round.number), *read_inputs(entry["measures"], images)[:2])
            sample = random.Random(this_round.number).sample(
                range(1, this_round.trials + 1), min(arguments.trials, this_round.trials)
            )
            seconds = sum(time_usual(scorers, trial) for trial in sample) / len(sample)
            repeats = max(measure["repeats"] for measure in entry["measures"].values())
            timed += len(sample)
            usual += seconds * this_round.trials * repeats
            rows.append([this_round.number, this_round.trials, f"{seconds:.2f}", f"{seconds * this_round.trials * repeats:.0f}"])
    print(f"{arguments.space}, preset {arguments.preset}, {CORES} cores, {measurements} measurements\n")
    print(table(["round", "trials", "usual way, s per trial and repeat", "s per round"], rows))
    print(f"\nThe usual way, scaled up from {timed} timed trials: {usual:.0f} s. Ours, the whole search: {ours:.1f} s. ", end="")
    print(f"Ratio: {usual / ours:.1f}.")


if __name__ == "__main__":
    main()
