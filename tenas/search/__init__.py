"""Narrow a search space round by round: pruning, sampling, limits, shortlists, finalists. Only scoring needs torch.

The package is also the function ``tenas.search``: calling it calls ``tenas.api.search``, which has the documentation.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Front(ModuleType):
    """A callable package: ``tenas.search`` is both this package and a function."""

    @property
    def _function(self) -> Callable[..., Any]:
        # Imported by name on the call, so that this package does not depend on it.
        function: Callable[..., Any] = import_module("tenas.api").search
        return function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        return signature(self._function)


sys.modules[__name__].__class__ = _Front
