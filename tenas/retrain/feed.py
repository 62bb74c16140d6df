"""Yield uint8 image batches on the device, either from RAM (free) or decoded from files by worker processes."""

import math
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tenas.data import Part
from tenas.data.parts import Arrays
from tenas.device import send
from tenas.errors import TenasError
from tenas.machine import SHARED_MEMORY, processors
from tenas.progress import remark
from tenas.retrain.stopping import ignore_stop

# Purposes of random numbers. Generators are seeded by (seed, purpose, epoch, step or image) and never carried over, so that an
# epoch is the same whether the training before it was interrupted or not.
STATISTICS, ORDER, AUGMENTATION, CROP, DROP_PATH = range(5)

# Share of a GPU's free memory that a data set may take. CIFAR-10 has 150 MB.
DEVICE_SHARE = 0.25
# Width by height of a crop, the least and the largest.
PROPORTIONS = (3 / 4, 4 / 3)
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

    ``least_area``: smallest share of an image in a random resized crop, which depends on (seed, epoch, index) alone; None for
    whole images. A damaged file yields its error message.
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
            # If raised here, it would reach the main process as the text of a traceback.
            return str(error)
        labels = torch.from_numpy(self.part.labels[indices])
        if get_worker_info() is not None:
            # Copy to shared memory here: a thread of the worker would do it later, and hide the error if there is no room.
            try:
                images.share_memory_(), labels.share_memory_()
            except RuntimeError as error:
                return (
                    f"The shared memory {SHARED_MEMORY} has no room for a batch of images ({error}): use fewer 'workers', or, "
                    "in a container, --shm-size."
                )
        return images, labels

    def crop(self, index: int, epoch: int) -> Tensor:
        from torchvision.transforms.v2 import functional

        assert self.least_area is not None
        # (3, h, w), with the memory layout kept: the fastest one for resizing too.
        image = torch.from_numpy(self.part.picture(index).copy()).permute(2, 0, 1)
        generator = torch.Generator("cpu").manual_seed(derived_seed(self.seed, CROP, epoch, index))
        box = draw_box(image.shape[1], image.shape[2], self.least_area, generator)
        crop: Tensor = functional.resized_crop(image, *box, size=[self.side, self.side], antialias=True)
        return crop.permute(1, 2, 0)


def draw_box(height: int, width: int, least_area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a crop of an image: top, left, height, width in pixels; the numbers of torchvision's RandomResizedCrop.

    Its share of the image is uniform from ``least_area`` to 1, the logarithm of its proportions in PROPORTIONS (Szegedy et al.
    2015). After ten boxes that do not fit into the image, the largest one in the middle. torchvision's own draws go by what is
    torch's default in the process (generator, dtype, device), which a forked worker inherits, and one of a fork server does not.
    """
    low, high = torch.log(torch.tensor(PROPORTIONS, dtype=torch.float32, device="cpu")).tolist()
    number = torch.empty(1, dtype=torch.float32, device="cpu")
    for _ in range(10):
        area = height * width * number.uniform_(least_area, 1, generator=generator).item()
        proportions = torch.exp(number.uniform_(low, high, generator=generator)).item()
        w, h = round(math.sqrt(area * proportions)), round(math.sqrt(area / proportions))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                int(torch.randint(0, room + 1, (1,), generator=generator, dtype=torch.int64, device="cpu").item())
                for room in (height - h, width - w)
            )
            return top, left, h, w
    w = min(width, round(height * PROPORTIONS[1]))
    h = min(height, round(width / PROPORTIONS[0]))
    return (height - h) // 2, (width - w) // 2, h, w


class Requests:
    """Sampler of a loader that lasts for all epochs: the batches of the next one, set before it."""

    batches: Iterable[np.ndarray] = ()
    epoch = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return ((indices, self.epoch) for indices in self.batches)


def workers_that_fit(workers: int, batch_bytes: int, shared_memory: Path = SHARED_MEMORY) -> int:
    """Number of worker processes whose batches fit in shared memory; prints a message if fewer than ``workers``.

    Containers have 64 MB of it by default. 0 if it cannot be written: then this process decodes the images.
    """
    if not workers or sys.platform != "linux":
        return workers
    room, needed = 0, AHEAD * batch_bytes * processes_here()
    if os.access(shared_memory, os.W_OK):
        found = os.statvfs(shared_memory)
        room = found.f_bavail * found.f_frsize
    # Half of it: the batch in use remains while the next ones arrive, and other processes use shared memory too.
    fitting = min(workers, room // max(1, 2 * needed))
    if fitting < workers:
        remark(
            f"{shared_memory} has {room >> 20} MB free, which is enough for the batches of {fitting} workers, not of {workers}: "
            f"images are read by {fitting or 'this process'}. In a container, --shm-size increases it."
        )
    return fitting


def start_method(device: torch.device) -> str | None:
    """Start method of worker processes; None for Python's default.

    They are not forked from a process that uses a GPU or belongs to a group: NCCL may be active in it, and a copy would hold its
    GPU, and the lock on it, after its end. They are forked from a server that has loaded torch once.
    """
    if device.type != "cuda" and not torch.distributed.is_initialized():
        return None
    # No module of this package: the server does not have this process's sys.path (until Python 3.13), and might load another
    # `tenas`, which its workers would then use.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch"])
    return "forkserver"


class FromWorkers:
    """Batches decoded and cropped by worker processes ahead of the network; with 0 ``workers``, by this process."""

    def __init__(self, pictures: Pictures, device: torch.device, workers: int) -> None:
        self.pictures, self.device, self.requests = pictures, device, Requests()
        self.workers = workers_here(workers)
        self.loader: DataLoader[Any] | None = None

    def _started(self, largest: int) -> DataLoader[Any]:
        """The loader, for batches of at most ``largest`` images."""
        workers = workers_that_fit(self.workers, largest * (3 * self.pictures.side**2 + 8))
        context = multiprocessing.get_context(start_method(self.device)) if workers else None
        loader = DataLoader(
            self.pictures,
            batch_size=None,
            sampler=self.requests,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=context,
            worker_init_fn=ignore_stop,
        )
        weakref.finalize(self, _end_workers, loader)
        return loader

    def __call__(self, batches: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.requests.batches, self.requests.epoch = list(batches), epoch
        if self.loader is None:
            self.loader = self._started(max(map(len, self.requests.batches), default=0))
        try:
            for batch in self.loader:
                if isinstance(batch, str):
                    raise TenasError(batch)
                images, labels = batch
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).partition(". ")[0]
            raise TenasError(
                f"A process that reads images has ended ({reason}), probably for lack of memory: use fewer 'workers', or give "
                "the container more shared memory (--shm-size). Finished epochs are kept."
            ) from error


def _end_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes: they ignore SIGTERM, with which Python would end them at exit, and would wait for them."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def workers_here(workers: int) -> int:
    """Number of workers of a process: at most ``workers``, and at most its share of the processors."""
    return min(workers, max(1, processors() // processes_here()))


def processes_here() -> int:
    """Number of processes of this training on this machine, from torchrun's variables."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def make_feed(
    part: Part, side: int, device: torch.device, *, workers: int, seed: int = 0, least_area: float | None = None
) -> Feed:
    """Choose the fastest feed of a part's images, of ``side`` pixels. ``least_area``: see Pictures."""
    if isinstance(part, Arrays) and least_area is None:
        return FromMemory(part, device)
    return FromWorkers(Pictures(part, side, seed, least_area), device, workers)
