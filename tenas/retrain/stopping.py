"""Signals by which a cluster asks a training to stop, before its time is over or another job takes its place."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of SLURM before a time limit and at a pre-emption, of Kubernetes and Docker; the other where a user asks for it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class UnfinishedError(Exception):
    """An epoch ended after ``step`` steps. ``sums``: of loss and of images that were right, until then, of all processes."""

    def __init__(self, step: int, sums: list[float]) -> None:
        super().__init__(step, sums)
        self.step, self.sums = step, sums


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Take the signals within the block as a request. Yields a function: whether there was one.

    Outside of the main thread, where Python has no signals, there never is.
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
    """Leave the signals to the process that trains: they reach its workers too, which it needs to finish a step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
