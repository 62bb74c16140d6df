"""Output of a command: its progress, as a bar or as lines of a log, and its result."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

WARNING, REMARK = "tenas: warning: ", "tenas: note: "
Advance = Callable[[int], object]
# (total, description, name of a unit) -> context of the function that counts finished units.
Progress = Callable[..., AbstractContextManager[Advance]]


@contextmanager
def silent(total: int, what: str, unit: str = "measurements") -> Iterator[Advance]:
    """Show nothing."""
    yield lambda more: None


@contextmanager
def shown(total: int, what: str, unit: str = "measurements") -> Iterator[Advance]:
    """Show a bar on a terminal, elsewhere a line per tenth of the total.

    Nothing is shown before the first unit is done, so that an error in the input stands alone.
    """
    bar, done = None, 0

    def advance(more: int) -> None:
        nonlocal bar, done
        before, done = done, done + more
        if not sys.stderr.isatty():
            if total and before * 10 // total < done * 10 // total:
                note(f"{what}: {done} of {total} {unit}")
            return
        if bar is None:
            from tqdm import tqdm

            bar = tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
        bar.update(more)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def note(text: str) -> None:
    """Print a remark on stderr, where progress is shown."""
    _print(text, sys.stderr)


def remark(text: str) -> None:
    """Print a sentence on stderr that ends nothing: ``tenas status`` tells it from that of a job which failed."""
    note(f"{REMARK}{text}")


def say(text: str) -> None:
    """Print a result to a pipe that may have been closed, as in ``tenas audit ... | head``."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # The reader is gone, which is no reason to stop. At exit Python would write the rest of the buffer again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning for stderr: Python's own form names a file and quotes its code."""
    named = "" if category.__module__.partition(".")[0] == "tenas" or category is UserWarning else f"{category.__name__}: "
    return f"{WARNING}{named}{' '.join(str(message).split())}\n"


def duration(seconds: float) -> str:
    """Format a duration, rounded to whole seconds, but of at least one: ``35 s``, ``4 min 10 s``, ``3 h 05 min``."""
    whole = max(round(seconds), int(seconds > 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
