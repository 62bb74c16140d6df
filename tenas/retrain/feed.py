"""Yield uint8 image batches on the device, either from RAM (free) or decoded from files by worker processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenas.data import Part
from tenas.data.parts import Arrays
from tenas.device import send
from tenas.errors import TenasError
from tenas.machine import processors, shared_memory
from tenas.retrain.stopping import ignore_stop

# Purposes of random numbers. Generators are seeded by (seed, purpose, epoch, step or image) and never carried over, so that an
# epoch is the same whether the training before it was interrupted or not.
STATISTICS, ORDER, AUGMENTATION, CROP, DROP_PATH = range(5)

# Share of a GPU's free memory that a data set may take. CIFAR-10 has 150 MB.
DEVICE_SHARE = 0.25
# Batches that each worker process prefetches.
AHEAD = 2

# (batches of indices, epoch) -> images uint8 (b, h, w, 3) and labels int64 (b,).
Feed = Callable[[Iterable[np.ndarray], int], Iterator[tuple[Tensor, Tensor]]]


def derived_seed(*numbers: int) -> int:
    """Hash some numbers to a seed of 64 bits, for generators that take a single number."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class FromMemory:
    """Batches of a part in memory; in the GPU's memory if it takes less than DEVICE_SHARE of that."""

    def __init__(self, part: Arrays, device: torch.device) -> None:
        self.images, self.labels, self.device = torch.from_numpy(part.images), torch.from_numpy(part.labels), device
        if device.type == "cuda" and self.images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __call__(self, batches: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in batches:
            index = send(indices, self.images.device)
            yield send(self.images[index], self.device), send(self.labels[index], self.device)


class Pictures(Dataset[tuple[Tensor, Tensor] | str]):
    """Work of a worker process: (indices, epoch) -> images uint8 (b, side, side, 3) and labels (b,).

    ``least_area``: smallest share of an image in a random resized crop (torchvision's RandomResizedCrop), which depends on
    (seed, epoch, index) alone; None for whole images. A damaged file yields its error message.
    """

    def __init__(self, part: Part, side: int, seed: int, least_area: float | None) -> None:
        self.part, self.side, self.seed, self.least_area = part, side, seed, least_area

    def __getitem__(self, request: tuple[np.ndarray, int]) -> tuple[Tensor, Tensor] | str:
        indices, epoch = request
        try:
            if self.least_area is None:
                # One by one: a longer list would be read by threads, and there are many processes already.
                images = torch.from_numpy(np.concatenate([self.part.read(index) for index in indices[:, None]]))
            else:
                images = torch.stack([self.crop(index, epoch) for index in indices])
        except TenasError as error:
            # Raised here, it would reach the main process as the text of a traceback.
            return str(error)
        return images, torch.from_numpy(self.part.labels[indices])

    def crop(self, index: int, epoch: int) -> Tensor:
        from torchvision.transforms import v2

        transform = v2.RandomResizedCrop(self.side, scale=(self.least_area, 1), antialias=True)
        # (3, h, w), with the memory layout kept: the fastest one for resizing too.
        image = torch.from_numpy(self.part.picture(index).copy()).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, CROP, epoch, index))
            crop: Tensor = transform(image)
            return crop.permute(1, 2, 0)


class Requests:
    """Sampler of a loader that lasts for all epochs: the batches of the next one, set before it."""

    batches: Iterable[np.ndarray] = ()
    epoch = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return ((indices, self.epoch) for indices in self.batches)


class FromWorkers:
    """Batches decoded and cropped by worker processes ahead of the network; with 0 ``workers``, by this process."""

    def __init__(self, pictures: Pictures, device: torch.device, workers: int) -> None:
        self.device, self.requests = device, Requests()
        workers = workers_here(workers)
        context = None
        if workers:
            # Not forked from this process: NCCL may be at work in it, and a copy of it would keep its GPU, and the lock on that,
            # after its end. They come from a server that has loaded all they need, once.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
        self.loader = DataLoader(
            pictures,
            batch_size=None,
            sampler=self.requests,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            multiprocessing_context=context,
            worker_init_fn=ignore_stop,
        )

    def __call__(self, batches: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.requests.batches, self.requests.epoch = batches, epoch
        for batch in self.loader:
            if isinstance(batch, str):
                raise TenasError(batch)
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def workers_here(workers: int) -> int:
    """How many of ``workers`` a process gets: no more than its share of the processors, for which they would wait."""
    return min(workers, max(1, processors() // processes_here()))


def processes_here() -> int:
    """Processes of this training on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_shared_memory(images: int, side: int, workers: int, folder: Path = Path("/dev/shm")) -> None:
    """Raise TenasError where the batches of worker processes don't fit in shared memory, which would be a "Bus error".

    ``images``: in a batch of one process. ``folder``: where shared memory is.
    """
    there, workers = shared_memory(folder), workers_here(workers)
    # The batches that are waiting, and for each worker the one that it makes.
    needed = processes_here() * workers * (AHEAD + 1) * images * side * side * 3
    if there is not None and needed > there:
        raise TenasError(
            f"The batches of {workers} worker processes take up to {needed / 1e6:.0f} MB of shared memory and {folder} has "
            f"{there / 1e6:.0f} MB: give the container more (docker run --shm-size=8g or --ipc=host, on Kubernetes an emptyDir "
            "of medium Memory), or lower 'workers'."
        )


def make_feed(
    part: Part, side: int, device: torch.device, *, workers: int, seed: int = 0, least_area: float | None = None
) -> Feed:
    """Choose the fastest feed of a part's images, of ``side`` pixels. ``least_area``: see Pictures."""
    if isinstance(part, Arrays) and least_area is None:
        return FromMemory(part, device)
    return FromWorkers(Pictures(part, side, seed, least_area), device, workers)
