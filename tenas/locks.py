"""Things that one process at a time may have, each with a file as its lock: the kernel lets go of it when the process ends."""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from tenas.errors import TenasError

POLL_SECONDS = 0.5


class Lock(NamedTuple):
    """Held until the process ends or closes ``file``. ``number``: of the name that was free, from 0."""

    number: int
    file: IO[str]


def lock_folder() -> Path:
    """The folder of a user's locks on this machine, made where there is none. Raises TenasError when it is someone else's."""
    folder = Path(tempfile.gettempdir()) / f"tenas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise TenasError(f"The folder {folder} is to hold locks, but belongs to another user: remove it, or set TMPDIR.")
    return folder


def take_free(names: Sequence[str], folder: Path) -> Lock | None:
    """Take the first of the ``names`` that no process has, or None.

    The lock is of the opened file (flock), so a process that was forked from this one has it too, until it ends.
    """
    for number, name in enumerate(names):
        file = (folder / f"{name}.lock").open("a")
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(number, file)
        file.close()
    return None


def take_one(names: Sequence[str], folder: Path, what: str) -> Lock:
    """Take one of the ``names``; where other processes have all of them, say so (``what``: a word for one) and wait."""
    taken = take_free(names, folder)
    if taken is None:
        print(f"tenas: waiting for a {what}: other processes have all {len(names)}.", file=sys.stderr, flush=True)
    while taken is None:
        time.sleep(POLL_SECONDS)
        taken = take_free(names, folder)
    return taken
