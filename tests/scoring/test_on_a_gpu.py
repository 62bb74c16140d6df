"""Scores on a GPU that is none: each measure with what a stage does around it, drawing, moving, grouping; shapes and devices."""

import numpy as np
import pytest
from helpers.engine import CARD, IMAGES, KAPPA, NAS, ON_A_BATCH, REGIONS, cells_of, first_round, tiny
from helpers.gpu import pretended

from tenas.measures.catalogue import BUILT_IN
from tenas.scoring.score import Task, score
from tenas.scoring.subjects import Subjects, plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the numbers, which are made up
]
CROPS = {"repeats": 2, "inputs": "crops", "count": 90, "blocks": 3, "channels": 1, "weights": "kaiming_fan_in", "redraw": True}
# Counts of a network's parts, on whatever device its tensors are.
COUNTS = {"flops", "layers", "parameters"}
LABELLED = {**CARD, "labels": np.arange(len(IMAGES)) % CARD["classes"]}


def assert_scored(measures: dict, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, **answers: bool) -> None:
    task = Task(measures, subjects, (7, 1))
    measurements = plan(measures, subjects.ids)
    with pretended(monkeypatch, **answers) as gpu:
        values = score(task, IMAGES, LABELLED, measurements, device="cuda")
    assert values.keys() == set(measurements)
    assert gpu.made > 0


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - COUNTS))
def test_every_measure_of_a_cell_stays_on_its_device(name, monkeypatch):
    """As a study, and a round of cells of a search, takes it."""
    # SynFlow asks whether its value is finite, a loss whether a label is none.
    assert_scored({name: CROPS if name == REGIONS else ON_A_BATCH}, cells_of(NAS, 2), monkeypatch, yes="synflow" in name)


@pytest.mark.slow
def test_a_round_of_trials_stays_on_its_device(monkeypatch):
    assert_scored({name: tiny()["measures"][name] for name in (KAPPA, REGIONS)}, first_round(), monkeypatch)
