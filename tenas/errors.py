"""The exception whose message is meant for the user."""

from collections.abc import Iterable


class TenasError(Exception):
    """An error that the user can fix. The message is a complete sentence; the command line prints it, exits with ``status``."""

    status = 2


class StoppedError(TenasError):
    """What was asked to stop has kept what it had, and goes on with the same command. EX_TEMPFAIL of sysexits.h."""

    status = 75


def one_of(what: str, name: object, allowed: Iterable[str]) -> TenasError:
    """Make the error for an unknown name, e.g. ``one_of("space", "nas", ["darts"])``."""
    return TenasError(f"Unknown {what} {name!r}; known: {', '.join(map(str, allowed))}.")
