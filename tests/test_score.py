"""Scoring: what trials share, and that the numbers do not depend on how the work is split."""

import numpy as np
import pytest
import torch
from tenas.search.score import draw_crops, draw_images, normalised, score
from tenas.search.seeds import derive_seed
from tenas.search.table import Measurement, plan

from tenas.device import choose_device
from tenas.errors import TenasError
from tenas.measures import linear_regions, ntk_condition_number
from tenas.networks import Supernet, SupernetCells, initialise
from tenas.settings import search_settings
from tenas.spaces import get_space

NAS = get_space("nas-bench-201")
KAPPA, REGIONS = "ntk_condition_number", "linear_regions"
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
CARD = {"classes": 4, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
# Noise for images and few crops: the counts are saturated here, which is said and does no harm.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")
MASK, ROUND = NAS.full_mask(["none"]), NAS.rounds(["none"])[0]


def tiny(**changes) -> dict:
    measures = {KAPPA: {"repeats": 2, "batch": 4, "channels": 2}, REGIONS: {"repeats": 2, "count": 90}}
    return search_settings("nas-bench-201", "default", {"measures": measures, **changes})


def take(measurements, settings=None, **more):
    return score(settings or tiny(), IMAGES, CARD, MASK, ROUND, 7, measurements, **more)


def test_a_measurement_is_the_public_measure_of_the_public_network():
    """Written out by hand: the trial's mask, the repeat's weights and images, the measure."""
    measurements = [Measurement(5, KAPPA, 1), Measurement(5, REGIONS, 1)]
    values = take(measurements)
    mask = MASK.without([NAS.trials(MASK, ROUND)[4]])

    network = Supernet(NAS, mask, channels=2, cells=1, classes=4)
    initialise(network, "kaiming_fan_out", derive_seed(7, 1, 1, KAPPA, "weights"))
    batch = draw_images(IMAGES, CARD, 4, derive_seed(7, 1, 1, KAPPA, "inputs"))
    assert values[measurements[0]] == ntk_condition_number(network, batch)

    network = SupernetCells(NAS, mask, channels=1)
    initialise(network, "kaiming_fan_in", derive_seed(7, 1, 1, REGIONS, "weights"))
    crops = draw_crops(IMAGES, CARD, 90, derive_seed(7, 1, 1, REGIONS, "inputs"))
    assert values[measurements[1]] == linear_regions(network, crops.split(30))


def test_values_depend_on_no_order_no_company_and_no_processes():
    everything = plan(tiny(), ROUND.trials)
    values = take(everything)
    assert take(everything[::-1]) == values
    assert take(everything[3:4]) == {everything[3]: values[everything[3]]}
    assert take(everything, threads=2) == values
    shards = [plan(tiny(), ROUND.trials, (shard, 5)) for shard in range(1, 6)]
    assert {m: v for shard in shards for m, v in take(shard).items()} == values


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
        score(
            tiny(), IMAGES, CARD | {"std": [0.25, 0.0, 0.25]}, MASK, ROUND, 7, [Measurement(0, KAPPA, 0)]
        )  # fmt: skip


def test_a_gpu_that_is_not_there_is_refused_with_a_sentence():
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(TenasError, match="finds no GPU"):
            choose_device("cuda")


def test_whole_images_are_seen_by_the_supernet():
    options = search_settings("nas-bench-201", "paper", {"measures": {KAPPA: {"batch": 4}, REGIONS: {"channels": 1}}})
    mask, round = NAS.full_mask(), NAS.rounds()[0]
    values = score(options, IMAGES, CARD, mask, round, 0, [Measurement(0, REGIONS, 0)])
    assert values == {Measurement(0, REGIONS, 0): 60}  # 5000 were asked for, 60 are there, each in a region of its own
