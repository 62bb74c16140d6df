"""One training on several GPUs or machines: which of torchrun's processes this one is, and what they do together."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenas.device import choose_device, own_device, own_gpu
from tenas.errors import TenasError

T = TypeVar("T")


class Processes(NamedTuple):
    """This process among those that train one network. By default it is the only one, and nothing is sent."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Its number on this machine."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """This process's part of ``length`` things: neighbours, as many for each process as for the others, or one more."""
        return slice(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: T) -> T:
        """What the first process has as ``value``. The others give None."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """The first process of each machine runs the block before the others of its machine: it may download what they use."""
        if self.count > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.count > 1 and self.local_rank == 0:
            dist.barrier()

    def average_statistics(self, network: nn.Module) -> None:
        """Make the running statistics of batch normalisation their mean over the processes, each of which saw its own images."""
        if self.count == 1:
            return
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        flat = self.add_up(torch.cat([buffer.flatten() for buffer in buffers])) / self.count
        for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun has started, for as long as the block runs; without torchrun, be the only one.

    Gives this process, and its device: of ``device`` auto, cpu or cuda; each process of a machine has a GPU of its own.
    They talk through NCCL on GPUs, through Gloo on CPUs. Raises TenasError when there are more processes than GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield Processes(), torch.device(own_device(device))
        return
    kind = choose_device(device)
    processes = Processes(*(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    place = torch.device(kind)
    if kind == "cuda":
        if processes.local_rank >= torch.cuda.device_count():
            raise TenasError(
                f"torchrun has started process {processes.local_rank + 1} of this machine, which has "
                f"{torch.cuda.device_count()} GPU(s): lower --nproc-per-node."
            )
        # Not that of its own number: jobs that score may be at work on some of them.
        place = torch.device("cuda", own_gpu())
        torch.cuda.set_device(place)
    if processes.count == 1:
        yield processes, place
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=place if kind == "cuda" else None)
    try:
        yield processes, place
    finally:
        dist.destroy_process_group()


def freeze_unused(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Mark the parameters that no output depends on as needing no gradient: DistributedDataParallel would wait for theirs.

    A cell need not use both of its inputs, and one of NAS-Bench-201 may end in `none`. An optimiser leaves them as they are,
    with and without the mark.
    """
    probe = copy.deepcopy(network).train()
    device = next(probe.parameters()).device
    outputs = probe(torch.zeros(2, *image_shape, device=device))
    total = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    gradients = torch.autograd.grad(total, list(probe.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def distribute(network: nn.Module, processes: Processes, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network with which to train: its gradients are the means over the processes. It shares the network's weights.

    Each process normalises its own share of a batch, as is the custom, and has its own running statistics until
    ``average_statistics``.
    """
    if processes.count == 1:
        return network
    freeze_unused(network, image_shape)
    device = next(network.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        network, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
