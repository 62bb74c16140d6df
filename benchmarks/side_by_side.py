"""Work done by processes side by side: how much of it per second, with all of them busy at once."""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_barrier = None


def _start(barrier: object, threads: int) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(threads)


def _work(job: Callable[..., Callable[[], object]], arguments: tuple, least: float) -> tuple[int, float]:
    """Prepare the job, do it once, wait for the others, then repeat it for ``least`` seconds and more."""
    step = job(*arguments)
    step()
    _barrier.wait()
    start = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - start < least:
        step()
        count += 1
    return count, time.perf_counter() - start


class Workers:
    """``processes`` of ``threads`` threads each, used as a context manager."""

    def __init__(self, processes: int, threads: int) -> None:
        context = get_context("spawn")
        self.processes = processes
        self.pool = ProcessPoolExecutor(processes, context, _start, (context.Barrier(processes), threads))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def rate(self, job: Callable[..., Callable[[], object]], *arguments: object, least: float = 1.0) -> float:
        """How often per second ``job(*arguments)()`` is done by all processes together."""
        futures = [self.pool.submit(_work, job, arguments, least) for _ in range(self.processes)]
        return sum(count / seconds for count, seconds in (future.result() for future in futures))


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])
