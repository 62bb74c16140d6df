"""Turn exceptions into a sentence on stderr and an exit status: the boundary of every command.

0: success. 2: an error that the user can fix. 75: a temporary failure of the machine, such as a full disk; the same command may
succeed later. 130: stopped by Ctrl-C. 141: the reader of a pipe has closed it. 1: a fault of the program, with its line.
"""

import atexit
import errno
import os
import re
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from tenas.code import is_installed
from tenas.errors import StoppedError, TenasError, lacks_memory, of_os, reason
from tenas.progress import one_line

FAULT, REFUSED, LATER, STOPPED = 1, TenasError.status, StoppedError.status, 130
# The status that a shell gives a program ended by SIGPIPE.
UNREAD = 141
PACKAGE = Path(__file__).parent
# Variable with the effect of ``--debug``, unless empty or 0: print the traceback before the sentence.
DEBUG = "TENAS_DEBUG"
# Errors that pass by themselves or after making room: the same command works again.
PASSING = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EIO", "ENOMEM", "EAGAIN", "EMFILE", "ENFILE", "ESTALE", "EBUSY", "ETIMEDOUT", "ECONNREFUSED",
        "ECONNRESET", "ECONNABORTED", "ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "EHOSTDOWN",
    )
    if hasattr(errno, name)
}  # fmt: skip


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # Errors of urllib and socket (an unknown host) have no errno.
        network = type(error).__module__.partition(".")[0] in ("urllib", "socket", "http", "ssl") or isinstance(
            error, ConnectionError | TimeoutError
        )
        # NumPy reports an incomplete write without an errno.
        return network or error.errno in PASSING or (error.errno is None and str(error).endswith(" written"))
    return lacks_memory(error)


class Place(NamedTuple):
    """File and line of an error. ``ours``: whether they are of this package, and not of a user's measure, space or source."""

    text: str
    ours: bool


def _frames(error: BaseException) -> tuple[list[traceback.FrameSummary], list[traceback.FrameSummary]]:
    """The frames that an error went through, and those of them that are of this package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    # What sees each operator lies between torch and all that calls it.
    frames = [frame for frame in frames if frame.name not in ("__torch_dispatch__", "__torch_function__")] or frames
    return frames, [frame for frame in frames if PACKAGE in Path(frame.filename).parents]


def place_of(error: BaseException) -> Place:
    """Where an error was raised: the last line of this package or of a user's file, or else of any."""
    if isinstance(noted := getattr(error, "__place__", None), Place):
        return noted
    frames, ours = _frames(error)
    users = [frame for frame in frames if not frame.filename.startswith("<") and not is_installed(Path(frame.filename))]
    found = [frame for frame in frames if frame in ours or frame in users] or frames
    if not found:
        return Place("an unknown place", True)
    path = Path(found[-1].filename)
    shown = path.relative_to(PACKAGE.parent) if PACKAGE in path.parents else path
    return Place(f"{shown}, line {found[-1].lineno}", found[-1] in ours or not ours)


def _imported(error: BaseException) -> str | None:
    """The library whose import by this package raised an error; None for another error."""
    frames, ours = _frames(error)
    found = re.match(r"(?:import|from) (?!tenas\b)(\w+)", (ours[-1].line or "") if ours else "")
    return found[1] if found and frames[-1] is not ours[-1] else None


def note_place(error: BaseException, place: Place) -> None:
    """Keep the place of an error with it: a traceback has no pickle."""
    error.__place__ = place  # type: ignore[attr-defined]


def described(error: BaseException) -> tuple[str, int]:
    """Sentence and exit status for an error."""
    if isinstance(error, KeyboardInterrupt):
        return "Stopped. The same command goes on where this one was.", STOPPED
    if isinstance(error, TenasError):
        return str(error), LATER if any(map(_passes, _causes(error))) else error.status
    if lacks_memory(error):
        return (
            "There is not enough memory: free some, or use fewer 'threads', a smaller 'batch' or a smaller network. "
            "The same command goes on where this one was."
        ), LATER
    if isinstance(error, OSError):
        return of_os(error), LATER if _passes(error) else REFUSED
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # Path.resolve before Python 3.13
        return f"{_line(error)}: the link leads to itself.", REFUSED
    if isinstance(error, ImportError):
        return f"A required package cannot be imported: {_line(error)}. Install it, or reinstall this package.", REFUSED
    what, place = type(error).__name__, place_of(error)
    if library := _imported(error):
        return (
            f"The library {library} cannot be imported ({what}: {_line(error)}); a variable of the environment may be the reason."
        ), REFUSED
    if not place.ours:
        said = f"{what} in {place.text}: {_line(error)}. That file is not part of tenas; --debug prints the traceback."
        return said, REFUSED
    return (
        f"This is a fault of tenas ({what} in {place.text}: {_line(error)}). Please report it, with what --debug or {DEBUG}=1 "
        "prints."
    ), FAULT


def _line(error: BaseException) -> str:
    """Message of an error, on one line of limited length."""
    text = reason(error)
    return text if len(text) <= 300 else text[:297] + "..."


def _streams() -> None:
    """Make stdout and stderr accept any text: replace closed streams, and escape letters that the encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _unread() -> bool:
    """Whether stdout or stderr is a pipe whose reader has gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _away(stream: int) -> None:
    """Redirect a stream to the null device: at exit Python would write the rest of its buffer, and fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _tell(text: str) -> None:
    with suppress(OSError):
        print(f"tenas: {text}", file=sys.stderr, flush=True)


def bounded(run: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command and return its exit status; errors print a sentence on stderr instead of a traceback.

    ``debug``: print the traceback as well.
    """
    debug = debug or os.environ.get(DEBUG, "0") not in ("", "0")
    _streams()
    before, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        status = run()
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            # The reader has closed the pipe, as in `| head`; the command is not finished.
            _away(1)
            _away(2)
            return UNREAD
        text, status = described(error)
        if status == STOPPED:
            # Ignore further Ctrl-C while ending.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if debug:
            traceback.print_exc()
        _tell(text)
        return status
    finally:
        warnings.formatwarning = before
        # Otherwise Python writes again at exit, and fails.
        try:
            sys.stdout.flush()
        except OSError:
            _away(1)


def end(status: int) -> NoReturn:
    """End this process with an exit status, as Python does, but without freeing its objects: with torch that takes 0.4 s."""
    # Tells pools of threads to end (those of torch.compile, of a user's measure), and joins all that are no daemons.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
