"""Exclusive resources, each guarded by a lock file, which the OS releases when the process ends: GPUs, and outputs being written.

Locks are by flock. They hold between machines if the file system supports that (docs/reliability.md).
"""

import fcntl
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from tenas.errors import TenasError
from tenas.progress import remark

POLL_SECONDS = 0.5
# Format of the time since when a lock is held.
SINCE = "%Y-%m-%d %H:%M:%S"
# Of the outputs that this process is writing.
_held: set[IO[str]] = set()


def _let_go() -> None:
    """Close the locks in a forked process, such as a worker of a data loader, which may outlive its parent by seconds."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)


class Lock(NamedTuple):
    """A lock held until the process ends or closes ``file``. ``number``: 0-based index of its name among those offered."""

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
        remark(f"waiting for a {what}: other processes hold all {len(names)}.")
    while taken is None:
        time.sleep(POLL_SECONDS)
        taken = take_free(names, folder)
    return taken


@contextmanager
def alone(folder: Path, part: str = "") -> Iterator[bool]:
    """Be the only process that writes in a folder, or a ``part`` of it, for the duration of the block; wait for another one.

    Yields whether another process was waited for, which may have written the same output. The lock is a hidden file in the folder
    that names its owner; the file of a killed process is not locked. On a file system without locks a message says that there is
    none.
    """
    path, waited = folder / f".{part}.lock" if part else folder / ".lock", False
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    while (file := _try(path)) is None:
        if not waited:
            owner, way_out = _owner(path)
            remark(f"{folder / part} is being written by {owner}: waiting for it.{way_out}")
        waited = True
        time.sleep(POLL_SECONDS)
    _held.add(file)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime(SINCE)}\n")
        file.flush()
        yield waited
    finally:
        _held.discard(file)
        # Before the lock is released: processes that have opened the file detect that it was removed.
        path.unlink(missing_ok=True)
        file.close()
        # A refused command leaves no empty folder.
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


def _try(path: Path) -> IO[str] | None:
    """Take the lock of a file; None if another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # its holder has removed the empty folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            remark(f"{path.parent} has no locks ({error.strerror}): do not let two processes write there.")
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _owner(path: Path) -> tuple[str, str]:
    """Holder of a lock, with the time held; and advice if it is on another machine, which may have failed.

    The OS releases locks of this machine. Locks of another machine are released by the file system, in some cases only when that
    machine restarts.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    found = re.fullmatch(r"process \d+ on (.*) since (.*)", text)
    if found is None:
        return text or "another process", ""
    with suppress(ValueError):
        minutes = max(0, int(time.time() - time.mktime(time.strptime(found[2], SINCE)))) // 60
        text += f" ({minutes // 60} h {minutes % 60} min)"
    return text, "" if found[1] == platform.node() else f" If {found[1]} has failed, remove {path}."
