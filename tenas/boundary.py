"""The one place where what went wrong becomes what a user reads: a sentence on stderr, and an exit status.

0: done. 2: something to put right. 75: the machine's own trouble, such as a full disk; the same command may work later.
130: stopped by Ctrl-C. 141: nobody reads what it says. 1: a fault of the program, with the line that it is in.
"""

import errno
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tenas.errors import StoppedError, TenasError, lacks_memory, of_os
from tenas.progress import one_line

FAULT, REFUSED, LATER, STOPPED = 1, TenasError.status, StoppedError.status, 130
# As a shell has it for a program that was ended by SIGPIPE.
UNREAD = 141
PACKAGE = Path(__file__).parent
# Set to anything but 0 for what ``--debug`` is for: the traceback before the sentence.
DEBUG = "TENAS_DEBUG"
# What passes by itself, or by making room: no other command is needed.
PASSING = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EIO", "ENOMEM", "EAGAIN", "EMFILE", "ENFILE", "ESTALE", "EBUSY", "ETIMEDOUT", "ECONNREFUSED",
        "ECONNRESET", "ECONNABORTED", "ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "EHOSTDOWN",
    )
    if hasattr(errno, name)
}  # fmt: skip


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, to the first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # The errors of urllib and socket (a name that is not found) have no number of the system's.
        network = type(error).__module__.partition(".")[0] in ("urllib", "socket", "http", "ssl") or isinstance(
            error, ConnectionError | TimeoutError
        )
        # NumPy tells of a file that could not be written whole in words alone.
        return network or error.errno in PASSING or (error.errno is None and str(error).endswith(" written"))
    return lacks_memory(error)


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through, else the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents and frame.filename != __file__] or frames
    if not own:
        return "an unknown place"
    path = Path(own[-1].filename)
    shown = path.relative_to(PACKAGE.parent) if PACKAGE in path.parents else path
    return f"{shown}, line {own[-1].lineno}"


def described(error: BaseException) -> tuple[str, int]:
    """The sentence about an error, and the exit status of the command that it ended."""
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
    if isinstance(error, ImportError):
        return f"A package that is needed cannot be imported: {_line(error)}. Install it, or this package again.", REFUSED
    return (
        f"This is a fault of tenas ({type(error).__name__} in {_place(error)}: {_line(error)}). Please report it, with what "
        f"--debug or {DEBUG}=1 prints."
    ), FAULT


def _line(error: BaseException) -> str:
    """What an error says, on one line of some length."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _streams() -> None:
    """Streams that take every text: closed ones, and those whose encoding lacks letters, as in a file's name."""
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
    """Let a stream lead nowhere: Python would write what is left in its buffer once more at its exit, and complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _tell(text: str) -> None:
    with suppress(OSError):
        print(f"tenas: {text}", file=sys.stderr, flush=True)


def bounded(run: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command to its exit status, with a sentence on stderr in the place of a traceback.

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
            # Who reads has seen enough, as in `| head`; the command has not ended.
            _away(1)
            _away(2)
            return UNREAD
        text, status = described(error)
        if status == STOPPED:
            # A second Ctrl-C of an impatient user has nothing more to stop.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if debug:
            traceback.print_exc()
        _tell(text)
        return status
    finally:
        warnings.formatwarning = before
        # Else Python tries once more at its exit, and complains.
        try:
            sys.stdout.flush()
        except OSError:
            _away(1)
