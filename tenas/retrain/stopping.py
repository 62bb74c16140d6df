"""Signals by which a cluster asks a training to stop, before its time is over or another job takes its place."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# SIGTERM: of SLURM before a time limit and at a pre-emption, of Kubernetes and Docker; SIGUSR1: if a user asks SLURM for it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class UnfinishedError(Exception):
    """An epoch was interrupted after ``step`` steps. ``sums``: of losses and of correct predictions, over all processes."""

    def __init__(self, step: int, sums: list[float]) -> None:
        super().__init__(step, sums)
        self.step, self.sums = step, sums


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Treat the signals as a request within the block. Yields a function that returns whether there was one.

    Outside of the main thread, where Python handles no signals, it always returns False.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop(_: int = 0) -> None:
    """Ignore the signals in a worker: only the training process handles them, and needs its workers to finish a step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
