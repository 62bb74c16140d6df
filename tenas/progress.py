"""What a command says while it works and at its end: how far it is, as a bar or as lines of a log, and its result."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], object]
# Called with how much there is to do, what it is, and the name of a unit.
Progress = Callable[..., AbstractContextManager[Advance]]


@contextmanager
def silent(total: int, what: str, unit: str = "measurements") -> Iterator[Advance]:
    """Nothing is shown."""
    yield lambda more: None


@contextmanager
def shown(total: int, what: str, unit: str = "measurements") -> Iterator[Advance]:
    """Give the function that counts what is done.

    Nothing is shown before the first is done, so that an error in the input stands alone.
    """
    bar, done = None, 0

    def advance(more: int) -> None:
        nonlocal bar, done
        before, done = done, done + more
        if not sys.stderr.isatty():
            if total and before * 10 // total < done * 10 // total:
                print(f"{what}: {done} of {total} {unit}", file=sys.stderr, flush=True)
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


def say(text: str) -> None:
    """Print a result for a reader who may have gone away, as that of ``tenas audit ... | head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is still in the buffer would be tried once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
