"""What worker processes share: Ctrl-C is answered by the process that started them, and warnings are one line."""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as it reaches stderr: Python's own form names a file and quotes its code."""
    named = "" if category.__module__.partition(".")[0] == "tenas" or category is UserWarning else f"{category.__name__}: "
    return f"tenas: warning: {named}{' '.join(str(message).split())}\n"


def quiet_worker() -> None:
    """Set a worker process up: the process that started it answers Ctrl-C for both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.formatwarning = one_line


@contextmanager
def undisturbed_start() -> Iterator[None]:
    """Start processes in the block: they never see a Ctrl-C, which would make each of them print a traceback of its own.

    Blocked signals are inherited. One that comes meanwhile reaches this process at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
