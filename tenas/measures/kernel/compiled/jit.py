"""How functions are compiled, and how the machine code is kept on disk.

Numba's cache asks whether the file of a function has changed since it was compiled, and not whether those of the functions
that it calls have. Here the files of the whole folder count. It lies next to them, or in the user's folder for caches, or, where
neither can be written, in a temporary one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba.extending
from numba.core.caching import FunctionCache, NullCache

from tenas.errors import TenasError
from tenas.locks import lock_folder
from tenas.progress import remark

# Its names are made when it is imported.
CONFIG: Any = numba.config
if CONFIG.DISABLE_JIT:
    raise TenasError("NUMBA_DISABLE_JIT is set in the environment, and the kernels are compiled by Numba: unset it.")
Function = TypeVar("Function", bound=Callable[..., Any])


def _digest() -> str:
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


CODE = _digest()


@cache
def _say(where: str) -> None:
    """Say where the machine code is kept instead, once, and not in each worker process."""
    if multiprocessing.parent_process() is None:
        remark(f"the kernel's machine code cannot be kept next to the package or in the home folder; {where}.")


class FolderCache(FunctionCache):
    """Numba's cache of a function, valid as long as no file of this folder has changed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file._source_stamp = (self._cache_file._source_stamp, CODE)

    def load_overload(self, *signature: Any) -> Any:
        """Read machine code; None for what is not there, or is damaged: it is compiled again, and replaced."""
        try:
            return super().load_overload(*signature)  # type: ignore[no-untyped-call]
        except Exception:  # whatever pickle raises
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, *compiled: Any) -> None:
        """Keep machine code, where there is room for it."""
        try:
            super().save_overload(*compiled)  # type: ignore[no-untyped-call]
        except OSError as error:
            _say(f"{error.strerror}: each process compiles it again")


def _cache(function: Callable[..., Any]) -> FolderCache | NullCache:
    try:
        return FolderCache(function)
    except RuntimeError:  # numba has no place for it
        before = CONFIG.CACHE_DIR
    try:
        # Nobody else can write there: the code in it is run.
        CONFIG.CACHE_DIR = str(lock_folder() / "kernel")
        found = FolderCache(function)
        _say(f"it is in {CONFIG.CACHE_DIR}")
        return found
    except (OSError, RuntimeError, TenasError):
        _say("each process compiles it again")
        return NullCache()
    finally:
        CONFIG.CACHE_DIR = before


def compiled(function: Function) -> Function:
    """Compile a function when it is called, for the types of its arguments, or read its machine code from disk."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = _cache(function)
    return cast(Function, dispatcher)


def inlined(function: Function) -> Function:
    """Compile a function into each of its callers."""
    return cast(Function, numba.njit(inline="always")(function))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compiled code calls, written as the LLVM instructions that it stands for."""
    made: Callable[..., Any] = numba.extending.intrinsic(function)
    return made
