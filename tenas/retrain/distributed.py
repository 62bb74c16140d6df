"""Training on several GPUs or machines: this process's rank under torchrun, and communication between the processes."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenas.device import choose_device, own_device, own_gpu
from tenas.errors import TenasError

T = TypeVar("T")

# Timeout for the other processes: the first may be downloading a data set or hashing a million files.
PATIENCE = timedelta(hours=2)


class Processes(NamedTuple):
    """Rank of this process among those that train one network; the default is a single process, without communication.

    ``local_rank``: rank on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """Slice of ``length`` elements for this process: contiguous, of sizes that differ by one at most."""
        return slice(self.rank * length // self.world_size, (self.rank + 1) * length // self.world_size)

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: T) -> T:
        """Broadcast ``value`` of the first process; the others pass None."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any_says(self, yes: bool, device: torch.device) -> bool:
        """Whether ``yes`` is true in any of the processes. ``device``: of the backend."""
        return yes if self.world_size == 1 else bool(self.add_up(torch.tensor([float(yes)], device=device)).item())

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """Run the block in the first process of all, then in that of each other machine, then in the rest.

        It may download files for the others, to a folder shared by all machines or one per machine.
        """
        if self.world_size == 1:
            yield
            return
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            dist.barrier()
        yield
        for _ in range(turn, 2):
            dist.barrier()

    def average_statistics(self, network: nn.Module) -> None:
        """Average the running statistics of batch normalisation over the processes, each of which saw its own images."""
        if self.world_size > 1:
            set_statistics(network, self.add_up(statistics(network)) / self.world_size)

    def each_statistics(self, network: nn.Module) -> list[Tensor]:
        """``statistics`` of every process, by rank."""
        own = statistics(network)
        if self.world_size == 1:
            return [own]
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(found, own)
        return found


def statistics(network: nn.Module) -> Tensor:
    """Copy the running statistics of a network's batch normalisations into one row."""
    return torch.cat([buffer.flatten() for buffer in network.buffers() if buffer.is_floating_point()])


def set_statistics(network: nn.Module, row: Tensor) -> None:
    """Restore running statistics from a row of ``statistics``."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for buffer, values in zip(buffers, torch.split(row, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes started by torchrun for the duration of the block; without torchrun there is one.

    Yields this process and its device. ``device``: auto, cpu or cuda; each process of a machine has its own GPU. The backend is
    NCCL on GPUs, Gloo on CPUs. Raises TenasError for more processes than GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield Processes(), torch.device(own_device(device))
        return
    kind = choose_device(device)
    processes = Processes(*(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    assigned = torch.device(kind)
    if kind == "cuda":
        if processes.local_rank >= torch.cuda.device_count():
            raise TenasError(
                f"torchrun has started process {processes.local_rank + 1} of this machine, which has "
                f"{torch.cuda.device_count()} GPU(s): lower --nproc-per-node."
            )
        # Not the one of its local rank: scoring jobs may be using some of them.
        assigned = torch.device("cuda", own_gpu())
        torch.cuda.set_device(assigned)
    if processes.world_size == 1:
        yield processes, assigned
        return
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", device_id=assigned if kind == "cuda" else None, timeout=PATIENCE
    )
    yield processes, assigned
    # Not after an error: the others may be in the middle of a sum, and this process would wait for them; torchrun ends them.
    dist.destroy_process_group()


def freeze_unused(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Turn the gradients of unused parameters off: DistributedDataParallel would wait for them.

    A cell may ignore one of its inputs, and one of NAS-Bench-201 may end in `none`. An optimiser changes no such parameter
    either way.
    """
    probe = copy.deepcopy(network).train()
    device = next(probe.parameters()).device
    outputs = probe(torch.zeros(2, *image_shape, device=device))
    total = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    gradients = torch.autograd.grad(total, list(probe.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def distribute(network: nn.Module, processes: Processes, image_shape: tuple[int, int, int]) -> nn.Module:
    """Wrap a network for training: same weights, gradients averaged over the processes.

    Batch normalisation is over each process's share of a batch, as is customary, and its running statistics differ between
    processes until ``average_statistics``.
    """
    if processes.world_size == 1:
        return network
    freeze_unused(network, image_shape)
    device = next(network.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        network, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
