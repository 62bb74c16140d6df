"""The one exception whose message is meant for the user."""

from collections.abc import Iterable


class TenasError(Exception):
    """Something that the user can put right. The message is a whole sentence; the command line prints it and exits with 2."""


def one_of(what: str, name: object, allowed: Iterable[str]) -> TenasError:
    """The error for a name that is not among the known ones, e.g. ``one_of("space", "nas", ["darts"])``."""
    return TenasError(f"Unknown {what} {name!r}; known: {', '.join(map(str, allowed))}.")
