"""Scoring: what trials share, and that the numbers do not depend on how the work is split."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.engine import (
    CARD,
    DARTS,
    IMAGES,
    KAPPA,
    NAS,
    ON_A_BATCH,
    REGIONS,
    cells_of,
    chain_space,
    conv,
    first_round,
    kept_space,
    take,
    tiny,
)

from tenas.device import choose_device
from tenas.errors import TenasError
from tenas.measures import Measure, flops, linear_regions, ntk_condition_number, parameters
from tenas.measures.catalogue import BUILT_IN
from tenas.networks import INITIALISERS, Network, Supernet, SupernetCells, count_parameters, initialise, redrawn_whole
from tenas.networks.costs import operator_costs
from tenas.scoring.inputs import draw_crops, draw_images, draw_noise, normalised
from tenas.scoring.score import Scorer, Task, cell_network, in_groups
from tenas.scoring.subjects import Cell, Cells, Measurement, Trials, plan, read_cells, trials_of
from tenas.scoring.workers import Workers
from tenas.seeds import derive_seed
from tenas.settings import search_settings
from tenas.spaces import CellSpace

# Noise for images and few crops: the counts are saturated here, which is said and does no harm.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")
TRIALS = first_round()
MEASURES = tiny()["measures"]


def test_a_measurement_is_the_public_measure_of_the_public_network():
    """Written out by hand: the trial's mask, the repeat's weights and images, the measure."""
    measurements = [Measurement(5, KAPPA, 1), Measurement(5, REGIONS, 1)]
    values = take(measurements)
    mask = TRIALS.mask.without([TRIALS.trials[5]])

    network = Supernet(NAS, mask, channels=2, cells=1, classes=4)
    initialise(network, "kaiming_fan_out", derive_seed(7, 1, 1, KAPPA, "weights"))
    batch = draw_images(IMAGES, CARD, 4, derive_seed(7, 1, 1, KAPPA, "inputs"))
    assert values[measurements[0]] == ntk_condition_number(network, batch)

    network = SupernetCells(NAS, mask, channels=1)
    initialise(network, "kaiming_fan_in", derive_seed(7, 1, 1, REGIONS, "weights"))
    crops = draw_crops(IMAGES, CARD, 90, derive_seed(7, 1, 1, REGIONS, "inputs"))
    assert values[measurements[1]] == linear_regions(network, crops.split(30))


@pytest.mark.slow
def test_values_depend_on_no_order_no_company_and_no_processes():
    everything = plan(MEASURES, TRIALS.ids)
    values = take(everything)
    assert take(everything[::-1]) == values
    assert take(everything[3:4]) == {everything[3]: values[everything[3]]}
    assert take(everything, threads=2) == values
    shards = [plan(MEASURES, TRIALS.ids, (shard, 5)) for shard in range(1, 6)]
    assert {m: v for shard in shards for m, v in take(shard).items()} == values


@pytest.mark.parametrize("threads", [1, 2])
def test_a_round_in_this_process_leaves_nothing_behind(threads):
    """Networks and plans refer to themselves: they went to Python's oldest generation, and a search of ten seeds took 2.7 GB."""
    counts = []
    for _ in range(4):
        take(plan(MEASURES, TRIALS.ids)[:3], threads=threads)
        counts.append(len(gc.get_objects()))
    assert counts[-1] - counts[1] < 500


def test_repeats_differ_and_a_round_may_keep_its_weights():
    pair = [Measurement(0, KAPPA, 0), Measurement(0, KAPPA, 1)]
    redrawn, kept = take(pair), take(pair, tiny(measures={KAPPA: {"redraw": False, "batch": 4, "channels": 2, "repeats": 2}}))
    assert redrawn[pair[0]] == kept[pair[0]]
    assert redrawn[pair[1]] != redrawn[pair[0]] != kept[pair[1]] != redrawn[pair[1]]


def test_seeds_are_names():
    names = [(seed, round, repeat, purpose) for seed in range(4) for round in range(4) for repeat in range(4) for purpose in "ab"]
    assert len({derive_seed(*name) for name in names}) == len(names)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(0, 1, 2, "weights") == 6784203925187214832  # what is published must be drawn again by later versions


def test_images_are_drawn_without_replacement_and_normalised():
    batch = draw_images(IMAGES, CARD, 60, 0)
    assert batch.shape == (60, 3, 16, 16)
    assert torch.equal(batch, normalised(IMAGES, CARD))
    assert batch.mean().abs() < 0.1
    assert np.allclose(batch[3, 1, 2, 5].item(), (IMAGES[3, 2, 5, 1] / 255 - 0.5) / 0.25, atol=1e-6)
    some = draw_images(IMAGES, CARD, 10, 1)
    assert len(torch.unique(some.flatten(1), dim=0)) == 10
    assert not torch.equal(some, draw_images(IMAGES, CARD, 10, 2))


def test_crops_are_windows_of_one_channel():
    crops = draw_crops(IMAGES, CARD, 200, 0)
    assert crops.shape == (200, 1, 3, 3)
    assert crops.dtype == torch.float32
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES, (3, 3), axis=(1, 2)).reshape(-1, 9)
    known = {bytes(window) for window in windows}
    pixels = torch.round((crops * 0.25 + 0.5) * 255).to(torch.uint8).reshape(200, 9).numpy()
    assert all(bytes(crop) in known for crop in pixels)
    assert len({bytes(crop) for crop in pixels}) > 190


def test_too_few_images_are_refused_with_a_sentence():
    with pytest.raises(TenasError, match=r"A batch of 61 images was asked for, but the data set has 60"):
        take([Measurement(0, KAPPA, 0)], tiny(measures={KAPPA: {"batch": 61}}))


def test_images_of_one_colour_are_refused_with_a_sentence():
    with pytest.raises(TenasError, match="constant"):
        take([Measurement(0, KAPPA, 0)], card=CARD | {"std": [0.25, 0.0, 0.25]})


def test_a_gpu_that_is_not_there_is_refused_with_a_sentence():
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(TenasError, match="finds no GPU"):
            choose_device("cuda")


def test_whole_images_are_seen_by_the_supernet():
    changes = {"measures": {KAPPA: {"batch": 4}, REGIONS: {"channels": 1}}}
    entry = search_settings("nas-bench-201", "paper", changes)["rounds"][0]
    values = take([Measurement(0, REGIONS, 0)], entry, first_round([]), (0, 1))
    assert values == {Measurement(0, REGIONS, 0): 60}  # 5000 were asked for, 60 are there, each in a region of its own


def test_noise_is_drawn_from_its_seed():
    noise = draw_noise(IMAGES, 50, 3)
    assert noise.shape == (50, 3, 16, 16)
    assert torch.equal(noise, draw_noise(IMAGES, 50, 3))
    assert not torch.equal(noise, draw_noise(IMAGES, 50, 4))
    assert abs(noise.mean().item()) < 0.01
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    entry = tiny(measures={KAPPA: {"repeats": 1, "batch": 4, "channels": 2, "inputs": "noise"}})
    ours = take([Measurement(0, KAPPA, 0)], entry)
    # No image has a say in it.
    assert ours == take([Measurement(0, KAPPA, 0)], entry, card=CARD | {"mean": [0.1, 0.2, 0.3]})


# --- discrete cells

CELL_MEASURES = MEASURES | dict.fromkeys(("parameters", "flops", "naswot"), ON_A_BATCH)


def of_cells(subjects: Cells, measurements=None, **more) -> dict[Measurement, float]:
    return take(measurements or plan(CELL_MEASURES, subjects.ids), {"measures": CELL_MEASURES}, subjects, (7, 2), **more)


@pytest.mark.parametrize("space", [NAS, chain_space(), kept_space()], ids=lambda space: space.name)
@pytest.mark.slow
def test_cells_depend_on_no_order_no_company_and_no_processes(space):
    subjects = cells_of(space, 6)
    everything = plan(CELL_MEASURES, subjects.ids)
    assert len(everything) == 6 * (2 + 2 + 3)
    values = of_cells(subjects)
    assert of_cells(subjects, everything[::-1]) == values
    shards = [of_cells(subjects, plan(CELL_MEASURES, subjects.ids, (shard, 5))) for shard in range(1, 6)]
    assert {m: v for shard in shards for m, v in shard.items()} == values
    # The same cells in another order, with others between them.
    mixed = Cells(space, (subjects.cells[4], Cell(77, subjects.cells[0].arch), subjects.cells[1]))
    again = of_cells(mixed)
    assert all(again[m] == values[m] for m in again if m.subject != 77)
    # A number names a cell and is no part of its seeds: all cells of a repeat share images and draws.
    assert {m: v for m, v in again.items() if m.subject == 77} == {
        m._replace(subject=77): v for m, v in values.items() if m.subject == 1
    }


@pytest.mark.slow
def test_cells_in_worker_processes_have_the_same_values():
    subjects = cells_of(NAS, 4)
    assert of_cells(subjects, threads=2) == of_cells(subjects)


def test_a_cells_measurement_is_the_public_measure_of_the_public_network():
    subjects = cells_of(NAS, 3)
    values = of_cells(subjects)
    genotype = NAS.parse(subjects.archs[2])
    torch.set_num_threads(1)

    network = Network(genotype, channels=2, cells=1, classes=4)
    initialise(network, "kaiming_fan_out", derive_seed(7, 2, 1, KAPPA, "weights"))
    batch = draw_images(IMAGES, CARD, 4, derive_seed(7, 2, 1, KAPPA, "inputs"))
    assert values[2, KAPPA, 1] == ntk_condition_number(network, batch)
    assert values[2, "parameters", 0] == parameters(network, batch)
    assert values[2, "flops", 0] == flops(network, batch)

    cells = SupernetCells(NAS, NAS.mask(genotype), channels=1)
    initialise(cells, "kaiming_fan_in", derive_seed(7, 2, 0, REGIONS, "weights"))
    crops = draw_crops(IMAGES, CARD, 90, derive_seed(7, 2, 0, REGIONS, "inputs"))
    assert values[2, REGIONS, 0] == linear_regions(cells, crops.split(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell,arch\n1,{0}\n2,{1}\n", None),
        ("arch,cell,note\n{0},5,x\n", None),
        ("cell\n1\n", "no column 'arch'"),
        ("cell,arch\none,{0}\n", "line 2, has 'one' instead of a number"),
        ("cell,arch\n1,{0}\n1,{1}\n", "lists a cell twice"),
        ("cell,arch\n1,|conv~0|\n", "line 2: .conv. is no operator"),
        ("cell,arch\n1,{0}\n2", "cut off"),
    ],
)
def test_a_file_of_cells_is_read_or_refused_with_a_sentence(tmp_path, text, message):
    archs = [cell.arch for cell in cells_of(NAS, 2).cells]
    (tmp_path / "cells.csv").write_text(text.format(*archs))
    if message is None:
        assert set(read_cells(tmp_path / "cells.csv", NAS).archs.values()) <= set(archs)
        return
    with pytest.raises(TenasError, match=message):
        read_cells(tmp_path / "cells.csv", NAS)


def test_the_whole_network_is_subject_0_of_a_round():
    subjects = Trials(TRIALS.mask, TRIALS.round)
    assert subjects.masked(0) == TRIALS.mask
    assert subjects.keys(0) == {"round": 1, "trial": 0, "cell": "", "edge": "", "target": "", "source": "", "operator": ""}
    assert subjects.keys(1) == {
        "round": 1, "trial": 1, "cell": "cell", "edge": 0, "target": 1, "source": 0, "operator": "skip_connect"
    }  # fmt: skip


# --- trials with images of their own

OWN = trials_of(TRIALS.mask, TRIALS.round, {"images": "own"})
COUNT = len(OWN.tried)


def test_every_trial_may_draw_its_own_images_on_which_the_whole_is_measured_too():
    """Written out by hand: the weights of the repeat, the images of the trial, both networks."""
    for name, trial, repeat in ((KAPPA, 5, 0), (KAPPA, 6, 0), (KAPPA, 5, 1), (REGIONS, 24, 1)):
        pair = [Measurement(trial, name, repeat), Measurement(OWN.whole(trial), name, repeat)]
        values = take(pair, subjects=OWN)
        weights, inputs = derive_seed(7, 1, repeat, name, "weights"), derive_seed(7, 1, repeat, name, "inputs", trial)
        for measurement, mask in zip(pair, (TRIALS.mask.without([TRIALS.trials[trial]]), TRIALS.mask), strict=True):
            if name == KAPPA:
                network = Supernet(NAS, mask, channels=2, cells=1, classes=4)
                initialise(network, "kaiming_fan_out", weights)
                expected = ntk_condition_number(network, draw_images(IMAGES, CARD, 4, inputs))
            else:
                network = SupernetCells(NAS, mask, channels=1)
                initialise(network, "kaiming_fan_in", weights)
                expected = linear_regions(network, draw_crops(IMAGES, CARD, 90, inputs).split(30))
            assert values[measurement] == expected


def test_the_whole_network_sees_one_batch_or_one_for_each_trial():
    wholes = [Measurement(OWN.whole(trial), KAPPA, 0) for trial in range(1, COUNT + 1)]
    assert len(set(take(wholes, subjects=OWN).values())) == COUNT
    assert {TRIALS.whole(trial) for trial in range(1, COUNT + 1)} == {0}
    # By default nothing is seen by one trial alone.
    assert {TRIALS.drawn_by(subject) for subject in TRIALS.ids} == {()}
    assert trials_of(TRIALS.mask, TRIALS.round, {}) == trials_of(TRIALS.mask, TRIALS.round, {"images": "shared"}) == TRIALS


def test_every_trial_may_draw_its_own_weights_too():
    """As the released code does for linear regions: a draw for each trial, kept over its repeats."""
    entry = tiny(measures={REGIONS: {"repeats": 2, "count": 90, "redraw": False}}, images="own", own_weights=[REGIONS])
    subjects = trials_of(TRIALS.mask, TRIALS.round, entry)
    for trial, repeat in ((5, 0), (5, 1), (6, 1)):
        pair = [Measurement(trial, REGIONS, repeat), Measurement(COUNT + trial, REGIONS, repeat)]
        values = take(pair, entry, subjects)
        for measurement, mask in zip(pair, (TRIALS.mask.without([TRIALS.trials[trial]]), TRIALS.mask), strict=True):
            network = SupernetCells(NAS, mask, channels=1)
            initialise(network, "kaiming_fan_in", derive_seed(7, 1, 0, REGIONS, "weights", trial))
            crops = draw_crops(IMAGES, CARD, 90, derive_seed(7, 1, repeat, REGIONS, "inputs", trial))
            assert values[measurement] == linear_regions(network, crops.split(30))
    # Of the other measure only the images are the trial's own.
    kappa = [Measurement(5, KAPPA, 0)]
    assert take(kappa, entry, subjects) == take(kappa, entry, OWN)


@pytest.mark.long
def test_own_draws_depend_on_no_order_and_no_shards():
    subjects = trials_of(TRIALS.mask, TRIALS.round, {"images": "own", "own_weights": [REGIONS]})
    everything = plan(MEASURES, subjects.ids)
    assert len(everything) == 2 * COUNT * 4
    values = take(everything, subjects=subjects)
    assert take(everything[::-1], subjects=subjects) == values
    shards = [plan(MEASURES, subjects.ids, (shard, 5)) for shard in range(1, 6)]
    assert {m: v for shard in shards for m, v in take(shard, subjects=subjects).items()} == values


# --- a cell's network that is used again

LABELLED = CARD | {"labels": np.arange(60) % 4}
# Each measure that comes with the package, once with a size of its own, so that networks change between measurements.
EACH = {
    name: ON_A_BATCH | {"repeats": 2, "channels": 2 + place % 2, "weights": list(INITIALISERS)[place % 4]}
    for place, name in enumerate(BUILT_IN)
} | {REGIONS: MEASURES[REGIONS]}


@pytest.mark.parametrize("space", [NAS, pytest.param(DARTS, marks=pytest.mark.long)], ids=lambda space: space.name)
@pytest.mark.slow
def test_a_network_that_is_used_again_measures_as_a_new_one(space):
    """Every measure after every other, in both orders, as if each were taken alone."""
    subjects = cells_of(space, 2)
    everything = plan(EACH, subjects.ids)

    def taken(measurements):
        return take(measurements, {"measures": EACH}, subjects, (7, 2), LABELLED)

    alone = {m: v for measurement in everything for m, v in taken([measurement]).items()}
    assert taken(everything) == alone
    assert taken(everything[::-1]) == alone


def test_a_measure_leaves_the_network_as_it_was_built():
    """What would change the next measurement silently: modes, flags, types, hooks, methods, statistics, weights."""
    subjects = cells_of(DARTS, 1)
    torch.set_num_threads(1)
    for name, settings in EACH.items():
        scorer = Scorer(Task({name: settings}, subjects, (7, 2)), IMAGES, LABELLED, "cpu")
        scorer(Measurement(1, name, 0))
        if scorer.built:  # parameters and FLOPs are sums
            ((crops, built),) = scorer.built.items()
            new = cell_network(subjects, 1, settings, CARD["classes"])
            initialise(new, settings["weights"], scorer.seed(name, 0, "weights"))
            assert crops == (name == REGIONS)
            state = built.network.state_dict()
            assert all(
                torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in new.state_dict().items()
            )
            assert all(p.requires_grad and p.grad is None for p in built.network.parameters())
            for module, other in zip(built.network.modules(), new.modules(), strict=True):
                assert vars(module).keys() == vars(other).keys(), (name, module)
                assert module.training
                hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
                assert not any(hooks)


def leaves_traces(network, images):
    """A measure as it should not be: it leaves another mode, frozen weights of another type, and a hook."""
    network.eval().double().requires_grad_(False)
    network.register_forward_hook(lambda module, inputs, output: output * 0)
    return 1.0


class Drawn(torch.nn.Module):
    """An operator with numbers that no initialisation draws again."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * self.scale + torch.roll(x, 1, 3))


def test_what_may_not_be_used_again_is_built_again():
    traces = Measure("traces", leaves_traces)
    measures = {"naswot": ON_A_BATCH | {"repeats": 2}, "swap": ON_A_BATCH}
    subjects = cells_of(NAS, 2)
    clean = take(plan(measures, subjects.ids), {"measures": measures}, subjects, (7, 2))
    scorer = Scorer(Task(measures, subjects, (7, 2)), IMAGES, CARD, "cpu")
    scorer.measures["traces"] = (traces, ON_A_BATCH)
    for measurement, value in clean.items():
        scorer(Measurement(measurement.subject, "traces", 0))
        assert scorer(measurement).value == value

    space = CellSpace("drawn", {"conv": conv(3), "drawn": lambda inputs, outputs, stride: Drawn()}, nodes=3, channels=4, cells=1)
    subjects = cells_of(space, 3)
    everything = plan(measures, subjects.ids)
    alone = [take([m], {"measures": measures}, subjects, (7, 2))[m] for m in everything]
    assert list(map(take(everything, {"measures": measures}, subjects, (7, 2)).get, everything)) == alone


def test_whose_networks_are_drawn_again_as_a_whole():
    for space in (NAS, DARTS, kept_space(), chain_space()):
        genotype = space.random_genotype(space.full_mask(), np.random.default_rng(0))
        assert redrawn_whole(Network(genotype, channels=2, cells=2, classes=3))
        assert redrawn_whole(SupernetCells(space, channels=1))
    assert not redrawn_whole(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), Drawn()))
    assert not redrawn_whole(torch.nn.MultiheadAttention(4, 2))  # parameters without a reset of their own
    assert not redrawn_whole(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(3, 3, 1)))
    # Vectors that passes change.
    assert not redrawn_whole(torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 3, 1)))


class _Spare(torch.nn.Conv2d):
    """A convolution with a layer that no pass reaches."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, padding=1)
        self.spare = torch.nn.Linear(7, 7)


def _frozen(inputs, outputs, stride):
    return conv(3)(inputs, outputs, stride).requires_grad_(False)


def _tied(inputs, outputs, stride):
    first, *others = (torch.nn.Conv2d(outputs, outputs, 3, padding=1) for _ in range(2))
    others[0].weight = first.weight
    return torch.nn.Sequential(conv(3)(inputs, outputs, stride), first, *others)


@pytest.mark.parametrize(
    "odd", [_frozen, lambda inputs, outputs, stride: _Spare(inputs, outputs, 3, stride), _tied], ids=["frozen", "unused", "tied"]
)
def test_the_score_parameters_is_the_measure(odd):
    """Also where operators are frozen, share weights within, or have layers that no pass reaches."""
    space = CellSpace("odd", {"conv": conv(3), "odd": odd}, nodes=3, channels=4, cells=1)
    subjects = cells_of(space, 6)
    measures = {"parameters": ON_A_BATCH}
    found = take(plan(measures, subjects.ids), {"measures": measures}, subjects, (7, 2))
    values = []
    for measurement, value in found.items():
        network = Network(subjects.genotype(measurement.subject), channels=2, cells=1, classes=CARD["classes"])
        assert value == parameters(network, torch.zeros(2, 3, 8, 8))
        values.append(value)
    assert len(values) == 6
    # A sum over operators, as limits need.
    costs = operator_costs(space, side=8, classes=4, channels=2, cells=1)["parameters"]
    for genotype in map(subjects.genotype, subjects.ids):
        assert costs.of(genotype) == count_parameters(Network(genotype, channels=2, cells=1, classes=4))


def test_measurements_of_a_network_go_together():
    measures = {
        "swap": ON_A_BATCH,
        KAPPA: ON_A_BATCH | {"repeats": 3, "channels": 1},
        "naswot": ON_A_BATCH,
        REGIONS: MEASURES[REGIONS],
    }
    subjects = cells_of(NAS, 5)
    task, everything = Task(measures, subjects, (7, 2)), plan(measures, subjects.ids)
    groups = in_groups(task, everything, 2)
    assert sorted(m for group in groups for m in group) == sorted(everything)
    assert max(map(len, groups)) == 2
    assert [("swap", 0), ("naswot", 0)] in [[m[1:] for m in group] for group in groups]
    assert all(len({m.subject for m in group}) == 1 for group in groups if group[0].measure != REGIONS)
    assert all(len({m[1:] for m in group}) == 1 for group in groups if group[0].measure == REGIONS)
    groups = in_groups(Task(MEASURES, TRIALS, (7, 1)), plan(MEASURES, TRIALS.ids), 9)
    assert sorted(m for group in groups for m in group) == sorted(plan(MEASURES, TRIALS.ids))
    assert {len(group) for group in groups if group[0].measure == REGIONS} == {1}
    assert all(len({m[:2] for m in group}) == 1 for group in groups)
    assert sum(group[0].measure == KAPPA for group in groups) == len(TRIALS.ids)


# --- worker processes that die

# Measures in two processes and says what it was told of, and the values or the error.
JOB = """
import json, sys
sys.path.insert(0, {tests!r})
from helpers.engine import CARD, IMAGES, first_round
from tenas.errors import TenasError
from tenas.scoring.score import Task, score
from tenas.scoring.subjects import plan

if __name__ == "__main__":
    settings = dict(repeats=1, batch=4, channels=1, cells=1, weights="pytorch", redraw=True, inputs="images")
    measures = {{"deadly.py:DEADLY": settings}}
    subjects = first_round()
    told = []
    task, planned = Task(measures, subjects, (0, 1)), plan(measures, subjects.ids)
    try:
        values = score(task, IMAGES, CARD, planned, threads=2, taken=lambda taken: told.append(taken.measurement.subject))
    except TenasError as error:
        print(json.dumps({{"error": str(error), "told": told}}))
    else:
        print(json.dumps({{"values": [values[m] for m in sorted(values)], "told": told}}))
"""
# A process that finds a mark takes it away and dies, as the kernel lets a process die when memory runs out.
DEADLY = """
import os, signal, time
from pathlib import Path
from tenas.measures import Measure

def deadly(network, images):
    time.sleep(0.1)
    for mark in sorted(Path("marks").glob("*")):
        mark.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return float(sum(parameter.numel() for parameter in network.parameters()))

DEADLY = Measure("deadly", deadly)
"""


def start_job(folder: Path) -> subprocess.Popen:
    (folder / "deadly.py").write_text(DEADLY)
    (folder / "job.py").write_text(JOB.format(tests=str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "job.py"], cwd=folder, stdout=subprocess.PIPE, text=True, env=environment)


def children(process: int) -> list[int]:
    """Ids of the processes that a process has started to measure (not multiprocessing's tracker of resources)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path):
    """kill -9 of one of two processes in the middle of the work: every value is there, each told of once."""
    job = start_job(tmp_path)
    os.kill(workers_of(job)[0], signal.SIGKILL)
    out, _ = job.communicate(timeout=300)
    found = json.loads(out)
    assert sorted(found["told"]) == list(range(25))
    assert len(found["values"]) == 25


@pytest.mark.slow
def test_workers_that_die_again_end_the_job_with_a_sentence(tmp_path):
    (tmp_path / "marks").mkdir()
    for number in range(3):  # two processes can take two of them at a time
        (tmp_path / "marks" / str(number)).touch()
    out, _ = start_job(tmp_path).communicate(timeout=300)
    found = json.loads(out)
    assert "A worker process was killed twice, probably for lack of memory: use fewer 'threads'" in found["error"]
    assert len(set(found["told"])) == len(found["told"])


def workers_of(job: subprocess.Popen, count: int = 2) -> list[int]:
    """The ids of a job's workers, once all of them are there."""
    started = time.monotonic()
    while len(found := children(job.pid)) < count:
        assert job.poll() is None
        assert time.monotonic() - started < 120
        time.sleep(0.05)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 6], ids=["while they start", "while they measure"])
def test_no_worker_outlives_its_parent(tmp_path, seconds):
    """Not even after kill -9, of which no process is told."""
    job = start_job(tmp_path)
    workers = workers_of(job)
    time.sleep(seconds)
    job.kill()
    job.communicate()
    started = time.monotonic()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() - started < 30
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stopped_worker_is_waited_for_and_then_replaced(tmp_path):
    """One that goes on in time keeps its work, one that doesn't loses it: the values are the same."""
    job = start_job(tmp_path)
    first, second = workers_of(job)
    os.kill(first, signal.SIGSTOP)
    time.sleep(2)
    os.kill(first, signal.SIGCONT)
    os.kill(second, signal.SIGSTOP)
    out, _ = job.communicate(timeout=300)
    assert sorted(json.loads(out)["told"]) == list(range(25))
    assert not Path(f"/proc/{second}").exists()


@pytest.mark.long
def test_one_pair_of_workers_serves_several_tasks():
    """Rounds of a search, other images, and a measurement that cannot be taken: the values are those of one process."""
    with Workers(2) as workers:
        assert take(plan(MEASURES, TRIALS.ids), threads=2, workers=workers) == take(plan(MEASURES, TRIALS.ids))
        ids = {worker.pid for worker in workers._workers}
        subjects = cells_of(NAS, 4)
        assert of_cells(subjects, threads=2, workers=workers) == of_cells(subjects)
        assert {worker.pid for worker in workers._workers} == ids
        with pytest.raises(KeyError) as raised:
            take([Measurement(subject, "naswot", 0) for subject in range(4)], threads=2, workers=workers)
        assert "naswot" in str(raised.value)
        assert take(plan(MEASURES, TRIALS.ids), threads=2, workers=workers) == take(plan(MEASURES, TRIALS.ids))
    assert not [pid for pid in ids if Path(f"/proc/{pid}").exists()]
