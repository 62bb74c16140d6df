"""The images of a training: its parts, what is held out of them, the constants that normalise them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tenas.data import Arrays, Part
from tenas.data.parts import split_by_class
from tenas.data.prepared import channel_statistics
from tenas.data.sources import check_drawn, load
from tenas.errors import TenasError
from tenas.retrain.distributed import Processes
from tenas.retrain.feed import STATISTICS
from tenas.retrain.train import steps_of_epoch

STATISTICS_IMAGES = 10_000


class Data(NamedTuple):
    """The parts of a data set that a training uses, its classes, their names if any, and the side of its images in pixels."""

    train: Part
    valid: Part | None
    test: Part | None
    classes: int
    side: int
    class_names: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Part | None]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


def read_data(
    dataset: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    processes: Processes,
    *,
    card: Mapping[str, Any] | None = None,
    needs_test: bool = True,
) -> Data:
    """Load a data set and hold the share ``validation`` of its training images out, drawn from ``seed``.

    ``card``: of the sample that the search read. Raises TenasError if it is of other images, for a part that would be too small,
    and for images without labels.
    """
    middle = settings["evaluation_crop"]
    with processes.first_on_each_machine():
        loaded, side = load(dataset)
        if card is not None and processes.first:
            check_drawn(dataset, loaded, card)
    side = settings["side"] or side
    if needs_test and loaded.test is None:
        raise TenasError(
            "The data set has no test images, and no labels or too few images per class to hold some out: it cannot be used "
            "for retraining."
        )
    if needs_test and loaded.test is not None and (loaded.test.labels < 0).any():
        raise TenasError("The data set has test images without labels: no accuracy can be measured on them.")
    if (loaded.train.labels < 0).any():
        raise TenasError("The data set's images have no labels: nothing can be trained on them.")
    keep, held = split_by_class(loaded.train.labels, settings["validation"], seed)
    if len(keep) < 2 or (settings["validation"] and not len(held)):
        raise TenasError(
            f"'validation' {settings['validation']} of {len(loaded.train.labels)} training images leaves too few "
            "to train with, or none to choose the epoch with."
        )
    if len(keep) // steps_of_epoch(len(keep), settings["batch"]) // processes.world_size < 2:
        raise TenasError(
            f"'batch' {settings['batch']} with {processes.world_size} process(es) leaves fewer than 2 of {len(keep)} images per "
            "process, too few for batch normalisation: use a larger batch, or fewer processes."
        )
    # Crops are cut from the images in their own size; files keep that in any case.
    train = loaded.train.take(keep)
    train = train if isinstance(train, Arrays) and settings["resized_crop"] is not None else train.sized(side)
    valid = loaded.train.take(held).sized(side, middle) if len(held) else None
    test = None if loaded.test is None else loaded.test.sized(side, middle)
    return Data(train, valid, test, loaded.classes, side, tuple(loaded.class_names))


def channel_constants(part: Part, side: int, seed: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the training images of ``side``, or over STATISTICS_IMAGES of them."""
    sample = np.random.default_rng([seed, STATISTICS]).permutation(len(part.labels))[:STATISTICS_IMAGES]
    mean, std = channel_statistics(part.take(sample).sized(side).read(np.arange(len(sample))))
    # A constant channel has no information, but must not become 0/0.
    return mean, [s or 1.0 for s in std]
