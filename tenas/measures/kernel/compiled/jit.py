"""How functions are compiled, and how the machine code is kept on disk.

Numba's cache asks whether the file of a function has changed since it was compiled, and not whether those of the functions
that it calls have. Here the files of the whole folder count.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba.extending
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., Any])


def _digest() -> str:
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


CODE = _digest()


class FolderCache(FunctionCache):
    """Numba's cache of a function, valid as long as no file of this folder has changed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file._source_stamp = (self._cache_file._source_stamp, CODE)


def compiled(function: Function) -> Function:
    """Compile a function when it is called, for the types of its arguments, or read its machine code from disk."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = FolderCache(function)
    return cast(Function, dispatcher)


def inlined(function: Function) -> Function:
    """Compile a function into each of its callers."""
    return cast(Function, numba.njit(inline="always")(function))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compiled code calls, written as the LLVM instructions that it stands for."""
    made: Callable[..., Any] = numba.extending.intrinsic(function)
    return made
