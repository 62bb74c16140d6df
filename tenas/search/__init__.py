"""The search: score what a round measures, narrow by what was found, write down what is left. Only scoring needs torch.

The package is also the function ``tenas.search``: calling it calls ``tenas.api.search``, which has the documentation.
"""

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Front(ModuleType):
    """This package, which can be called: its name and that of the function are the same."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from tenas.api import search

        return search(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        from tenas.api import search

        return signature(search)


sys.modules[__name__].__class__ = _Front
