"""The exception whose message is meant for the user."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral


class TenasError(Exception):
    """An error that the user can fix. The message is a complete sentence; the command line prints it, exits with ``status``."""

    status = 2


class StoppedError(TenasError):
    """A stage stopped on request, with its progress saved: the same command resumes. EX_TEMPFAIL of sysexits.h."""

    status = 75


def one_of(what: str, name: object, allowed: Iterable[str]) -> TenasError:
    """Make the error for an unknown name, e.g. ``one_of("space", "nas", ["darts"])``."""
    return TenasError(f"Unknown {what} {name!r}; known: {', '.join(map(str, allowed))}.")


# Advice for errors of the operating system whose own text has none.
ADVICE = {
    errno.ENOSPC: "Make room there, and run the same command again.",
    errno.EDQUOT: "Make room in your quota, and run the same command again.",
    errno.EROFS: "Choose a place that can be written.",
    errno.EACCES: "Choose another place, or have its permissions changed.",
    errno.EPERM: "Choose another place, or have its permissions changed.",
    errno.EISDIR: "A file is expected there, and it is a folder.",
    errno.ENOTDIR: "A part of that path is a file, not a folder.",
    errno.EEXIST: "A part of that path is a file, or a link that leads nowhere.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Close other programs, or raise `ulimit -n`, and run the same command again.",
}
# Messages of libraries when the system refuses memory, threads or shared objects.
NO_MEMORY = (
    "failed to map segment",
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
)


def whole_number(value: object, name: str, least: int = 1, most: int | None = None) -> int:
    """An argument that is a whole number, also of NumPy. Raises TenasError for anything else, and for one out of range."""
    if (
        not isinstance(value, Integral)
        or isinstance(value, bool)
        or int(value) < least
        or (most is not None and int(value) > most)
    ):
        upto = f"at least {least}" if most is None else f"from {least} to {most}"
        raise TenasError(f"{name!r} is {in_short(value)}; it must be a whole number, {upto}.")
    return int(value)


LARGEST_SEED = 2**32 - 1


def of_os(error: OSError, path: str | os.PathLike[str] | None = None, what: str = "cannot be read or written") -> str:
    """Sentence for an error of the operating system. ``path``: of the file; by default the one that the error names."""
    named = path if path is not None else error.filename
    cause = error.strerror.rstrip(".") if error.strerror else reason(error)
    advice = f" {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    if isinstance(named, str | bytes | os.PathLike):
        named = f"The path {os.fsdecode(named) or repr('')}"
    return f"{named or 'A file, or the output,'} {what}: {cause}.{advice}"


def reason(error: BaseException) -> str:
    """Message of a library's error on one line, to end a sentence with."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def in_short(value: object) -> str:
    """A value for a message, cut to 80 letters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def ended_by(error: BaseException) -> TenasError:
    """The error for user's code that ends the process, by an exception which passes every ``except Exception``."""
    return TenasError(f"Code that this command runs ended it by {error!r}: a measure, a space or a source of images.")


# What Python raises for a value of another type or form than expected, as in a damaged file.
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@contextmanager
def damaged(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of unfit values in the block, which reads the files of a run, into a sentence."""
    try:
        yield
    except UNFIT as error:
        raise TenasError(
            f"A file of {folder} holds something other than expected ({type(error).__name__}: {reason(error)}); "
            f"`tenas audit {folder}` names it."
        ) from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of Python, the system, or torch on a CPU or GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error).lower()
    return isinstance(error, ImportError | OSError | RuntimeError) and any(text in said for text in NO_MEMORY)
