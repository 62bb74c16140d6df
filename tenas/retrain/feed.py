"""Batches of images, uint8, on the device: out of memory at no cost, or out of image files by worker processes."""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenas.data import Part
from tenas.data.sources import Arrays
from tenas.device import send
from tenas.errors import TenasError

# What random numbers are for. They come from (seed, purpose, epoch, step or image), never from a generator that runs on,
# so that an epoch is the same whether the training before it was interrupted or not.
STATISTICS, ORDER, AUGMENTATION, CROP, DROP_PATH = range(5)

# Of a GPU's free memory, what a data set may take. CIFAR-10 has 150 MB.
DEVICE_SHARE = 0.25
# Batches that each worker process has ready before they are asked for.
AHEAD = 2

# Batches of indices and the number of the epoch, to images uint8 (b, h, w, 3) and labels int64 (b,).
Feed = Callable[[Iterable[np.ndarray], int], Iterator[tuple[Tensor, Tensor]]]


def derived_seed(*numbers: int) -> int:
    """64 bits out of some numbers, for generators that take one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class FromMemory:
    """Batches of a part that is in memory: on the GPU itself where it takes but a share of that."""

    def __init__(self, part: Arrays, device: torch.device) -> None:
        self.images, self.labels, self.device = torch.from_numpy(part.images), torch.from_numpy(part.labels), device
        if device.type == "cuda" and self.images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __call__(self, batches: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in batches:
            index = send(indices, self.images.device)
            yield send(self.images[index], self.device), send(self.labels[index], self.device)


class Pictures(Dataset):
    """What a worker process does: a request (indices, epoch) to images uint8 (b, side, side, 3) and labels (b,).

    ``least_area``: of an image, at least that share is cropped at random, then resized (torchvision's RandomResizedCrop), by
    (seed, epoch, index) alone. None: images are read whole. A damaged file gives the sentence that says so.
    """

    def __init__(self, part: Part, side: int, seed: int, least_area: float | None) -> None:
        self.part, self.side, self.seed, self.least_area = part, side, seed, least_area

    def __getitem__(self, request: tuple[np.ndarray, int]) -> tuple[Tensor, Tensor] | str:
        indices, epoch = request
        try:
            if self.least_area is None:
                # One by one: the processes are many already, without the threads that a longer list would be read by.
                images = torch.from_numpy(np.concatenate([self.part.read(index) for index in indices[:, None]]))
            else:
                images = torch.stack([self.crop(index, epoch) for index in indices])
        except TenasError as error:
            # An exception would arrive as the text of a traceback.
            return str(error)
        return images, torch.from_numpy(self.part.labels[indices])

    def crop(self, index: int, epoch: int) -> Tensor:
        from torchvision.transforms import v2

        transform = v2.RandomResizedCrop(self.side, scale=(self.least_area, 1), antialias=True)
        # As (3, h, w), but in memory as it was: the fastest layout for resizing too.
        image = torch.from_numpy(self.part.picture(index).copy()).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, CROP, epoch, index))
            return transform(image).permute(1, 2, 0)


class Requests:
    """The sampler of a loader that lives through all epochs: the batches to come, which are set before each."""

    batches: Iterable[np.ndarray] = ()
    epoch = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return ((indices, self.epoch) for indices in self.batches)


class FromWorkers:
    """Batches that worker processes decode and crop ahead of the network; with no ``workers``, this process does."""

    def __init__(self, pictures: Pictures, device: torch.device, workers: int) -> None:
        self.device, self.requests = device, Requests()
        # More than there are processors would only wait for each other.
        workers = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.loader = DataLoader(
            pictures,
            batch_size=None,
            sampler=self.requests,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __call__(self, batches: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.requests.batches, self.requests.epoch = batches, epoch
        for batch in self.loader:
            if isinstance(batch, str):
                raise TenasError(batch)
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def make_feed(
    part: Part, side: int, device: torch.device, *, workers: int, seed: int = 0, least_area: float | None = None
) -> Feed:
    """The fastest way to a part's images, of ``side``. ``least_area``: see Pictures; the others are read as they are."""
    if isinstance(part, Arrays) and least_area is None:
        return FromMemory(part, device)
    return FromWorkers(Pictures(part, side, seed, least_area), device, workers)
