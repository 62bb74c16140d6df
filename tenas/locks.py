"""Exclusive resources of a user, each guarded by a lock file, which the OS releases when the process ends."""

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
    """The folder of the user's locks on this machine, created if missing. Raises TenasError if it belongs to another user."""
    folder = Path(tempfile.gettempdir()) / f"tenas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise TenasError(f"The lock folder {folder} belongs to another user: remove it, or set TMPDIR.")
    return folder


def take_free(names: Sequence[str], folder: Path) -> Lock | None:
    """Take the first of the ``names`` that no process holds; None if all are held.

    The lock belongs to the open file (flock), so a process forked from this one holds it too, until it ends.
    """
    for number, name in enumerate(names):
        file = (folder / f"{name}.lock").open("a")
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(number, file)
        file.close()
    return None


def take_one(names: Sequence[str], folder: Path, what: str) -> Lock:
    """Take one of the ``names``; if other processes hold all of them, print that and wait. ``what``: the noun for one of them."""
    taken = take_free(names, folder)
    if taken is None:
        print(f"tenas: waiting for a {what}: other processes hold all {len(names)}.", file=sys.stderr, flush=True)
    while taken is None:
        time.sleep(POLL_SECONDS)
        taken = take_free(names, folder)
    return taken
