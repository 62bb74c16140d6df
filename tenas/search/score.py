"""Measure the trials of a round: the one stage of a search that needs torch."""

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError
from tenas.measures import MEASURES, one_thread
from tenas.networks import Supernet, SupernetCells, initialise
from tenas.search.seeds import derive_seed
from tenas.search.table import Measurement
from tenas.spaces import Mask, Round, Space, Trial, get_space

CROP = 3


def normalised(images: np.ndarray, card: Mapping) -> Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) with mean 0 and standard deviation 1 a channel, by the data card."""
    mean, std = (torch.tensor(card[key], dtype=torch.float32) for key in ("mean", "std"))
    if (std == 0).any():
        raise TenasError("A channel of the images is constant: they cannot be normalised.")
    return ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def draw_indices(available: int, count: int, seed: int) -> np.ndarray:
    """``count`` different indices of ``available`` images, ascending."""
    return np.sort(np.random.default_rng(seed).choice(available, count, replace=False))


def draw_images(images: np.ndarray, card: Mapping, count: int, seed: int) -> Tensor:
    """``count`` different images, normalised. Raises TenasError when there are too few."""
    if count > len(images):
        raise TenasError(
            f"A batch of {count} images was asked for, but the data set has {len(images)}: lower 'batch', or prepare more images."
        )
    return normalised(images[draw_indices(len(images), count, seed)], card)


def draw_crops(images: np.ndarray, card: Mapping, count: int, seed: int) -> Tensor:
    """``count`` random 3x3 crops of one random channel each, normalised: (count, 1, 3, 3) float32.

    So small that their activation patterns are few: whole images nearly always have one each (released code).
    """
    generator = np.random.default_rng(seed)
    n, height, width, channels = images.shape
    index = generator.integers(n, size=count)
    top, left = generator.integers(height - CROP + 1, size=count), generator.integers(width - CROP + 1, size=count)
    channel = generator.integers(channels, size=count)
    offsets = np.arange(CROP)
    rows, columns = top[:, None, None] + offsets[:, None], left[:, None, None] + offsets
    crops = images[index[:, None, None], rows, columns, channel[:, None, None]]
    mean, std = (np.asarray(card[key], np.float32)[channel][:, None, None] for key in ("mean", "std"))
    return torch.from_numpy((crops.astype(np.float32) / 255 - mean) / std)[:, None]


def draw_inputs(name: str, settings: Mapping, images: np.ndarray, card: Mapping, seed: int, device: str) -> tuple:
    """What the measure ``name`` takes beside a network: a batch of images, with their labels if it needs them; R its blocks.

    Raises TenasError when there are too few images, or labels are needed and ``card`` has none.
    """
    if name != "linear_regions":
        batch = draw_images(images, card, settings["batch"], seed).to(device)
        if not MEASURES[name].needs_labels:
            return (batch,)
        if "labels" not in card:
            raise TenasError(f"The measure {name} needs the labels of the images.")
        labels = torch.from_numpy(card["labels"][draw_indices(len(images), settings["batch"], seed)])
        return batch, labels.to(device)
    count = settings["count"]
    if settings["inputs"] == "crops":
        inputs = draw_crops(images, card, count, seed)
        # One channel a crop, and the released network has one; a wider one reads the crop in each of its channels.
        inputs = inputs.expand(-1, settings["channels"], -1, -1)
    else:
        inputs = draw_images(images, card, min(count, len(images)), seed)
    return (inputs.to(device).tensor_split(settings["blocks"]),)


class SupernetMeasure:
    """A measure of a supernet with drawn weights and inputs, mask by mask."""

    def __init__(self, name: str, space: Space, settings: Mapping, images: np.ndarray, card: Mapping, device: str) -> None:
        self.name, self.settings, self.images, self.card, self.device = name, settings, images, card, device
        self.network = (
            SupernetCells(space, channels=settings["channels"])
            if settings.get("inputs") == "crops"
            else Supernet(space, channels=settings["channels"], cells=settings["cells"], classes=card["classes"])
        ).to(device)

    def draw(self, weights_seed: int, inputs_seed: int) -> None:
        initialise(self.network, self.settings["weights"], weights_seed)
        self.inputs = draw_inputs(self.name, self.settings, self.images, self.card, inputs_seed, self.device)

    def __call__(self, mask: Mask) -> float:
        self.network.set_mask(mask)
        return MEASURES[self.name](self.network, *self.inputs)


class Scorer:
    """Measures one trial after another. What a repeat shares, weights and inputs, is drawn once as long as it stays the same.

    ``card`` has the images' ``labels`` where a measure needs them.
    """

    def __init__(
        self, settings: Mapping, images: np.ndarray, card: Mapping, mask: Mask, round: Round, seed: int, device: str
    ) -> None:
        self.settings, self.mask, self.round, self.seed = settings, mask, round, seed
        self.masks = self._masks(mask.space.trials(mask, round))
        self.measures = {
            name: SupernetMeasure(name, mask.space, measure, images, card, device)
            for name, measure in settings["measures"].items()
        }
        self.drawn: dict[str, int] = {}

    def _masks(self, trials: Sequence[Trial]) -> list[Mask]:
        return [self.mask, *(self.mask.without([trial]) for trial in trials)]

    def __call__(self, measurement: Measurement) -> float:
        trial, name, repeat = measurement
        measure = self.measures[name]
        if self.drawn.get(name) != repeat:
            redraw = self.settings["measures"][name]["redraw"]
            names = (self.seed, self.round.number)
            measure.draw(
                derive_seed(*names, repeat if redraw else 0, name, "weights"),
                derive_seed(*names, repeat, name, "inputs"),
            )
            self.drawn[name] = repeat
        return measure(self.masks[trial])


_scorer: Scorer


def _start_worker(space: str, active: tuple, *arguments: object) -> None:
    global _scorer
    torch.set_num_threads(1)
    settings, images, card, round, seed = arguments
    _scorer = Scorer(settings, images, card, Mask(get_space(space), active), round, seed, "cpu")


def _measure(measurement: Measurement) -> tuple[Measurement, float]:
    return measurement, _scorer(measurement)


def score(
    settings: Mapping,
    images: np.ndarray,
    card: Mapping,
    mask: Mask,
    round: Round,
    seed: int,
    measurements: Sequence[Measurement],
    *,
    threads: int = 1,
    device: str = "cpu",
    taken: Callable[[Measurement, float], None] = lambda measurement, value: None,
) -> dict[Measurement, float]:
    """Take ``measurements`` of a round: {measurement: value}.

    ``images``: uint8 (n, h, w, 3) with their ``card``. ``mask``: before the round. ``threads``: on the CPU as many
    processes of one thread each; on a GPU one process. ``taken`` is called, in this process, with each measurement as
    soon as it has been taken.

    The values depend on (settings, images, mask, round, seed) and on the kind of processor, not on threads or order.
    Raises TenasError when there are too few images for a batch.
    """
    values: dict[Measurement, float] = {}

    def keep(results: Iterable[tuple[Measurement, float]]) -> None:
        for measurement, value in results:
            values[measurement] = value
            taken(measurement, value)

    # The scorer is made here in any case: what's wrong with the settings is said before processes are started.
    with one_thread():
        scorer = Scorer(settings, images, card, mask, round, seed, device)
        if device != "cpu" or threads == 1 or len(measurements) < 2 * threads:
            keep((measurement, scorer(measurement)) for measurement in measurements)
            return values
    arguments = (mask.space.name, mask.active, settings, images, card, round, seed)
    with multiprocessing.get_context("spawn").Pool(threads, _start_worker, arguments) as pool:
        # One at a time and as they come: a job that is killed loses what was under way and nothing else. That each
        # process draws weights and images anew for every repeat costs a few hundredths of a measurement.
        keep(pool.imap_unordered(_measure, measurements))
    return values
