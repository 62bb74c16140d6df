"""The exception whose message is meant for the user."""

import errno
from collections.abc import Iterable


class TenasError(Exception):
    """An error that the user can fix. The message is a complete sentence; the command line prints it and exits with 2."""


def one_of(what: str, name: object, allowed: Iterable[str]) -> TenasError:
    """Make the error for an unknown name, e.g. ``one_of("space", "nas", ["darts"])``."""
    return TenasError(f"Unknown {what} {name!r}; known: {', '.join(map(str, allowed))}.")


# What libraries say when the system refuses them memory, or room for threads and shared objects.
NO_MEMORY = (
    "failed to map segment",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether memory is what an error is about: of Python, of the system, of torch on a processor or a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, ImportError | OSError | RuntimeError) and any(text in str(error) for text in NO_MEMORY)
