"""TE-NAS: neural architecture search without training, as a reproducible pipeline.

The public API is ``__all__``. Each name is imported on first use, and torch by the first that needs it::

    import tenas

    found = tenas.search("nas-bench-201", images, labels=labels)    # images: uint8 (n, h, w, 3) or float (n, 3, h, w)
    network = tenas.build(found.genotype, channels=16, cells=5, classes=10)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenas.api import (
        SearchResult,
        SearchRound,
        build,
        list_measures,
        list_presets,
        list_sources,
        list_spaces,
        measure,
        search,
    )
    from tenas.data.parts import Arrays, Files, Loaded, Paths
    from tenas.data.sources import Source
    from tenas.errors import TenasError
    from tenas.measures.catalogue import Measure
    from tenas.ranking import rank
    from tenas.spaces.base import Genotype, Space
    from tenas.spaces.custom import CellSpace, ChainSpace, Layer

__version__ = "0.1.0"

# Name -> its module.
_FROM = {
    "SearchResult": "tenas.api", "SearchRound": "tenas.api", "build": "tenas.api", "list_measures": "tenas.api",
    "list_presets": "tenas.api", "list_sources": "tenas.api", "list_spaces": "tenas.api", "measure": "tenas.api",
    "Arrays": "tenas.data.parts", "Files": "tenas.data.parts", "Loaded": "tenas.data.parts", "Paths": "tenas.data.parts",
    "rank": "tenas.ranking", "Source": "tenas.data.sources", "TenasError": "tenas.errors", "Measure": "tenas.measures.catalogue",
    "Genotype": "tenas.spaces.base", "Space": "tenas.spaces.base", "CellSpace": "tenas.spaces.custom",
    "ChainSpace": "tenas.spaces.custom", "Layer": "tenas.spaces.custom",
}  # fmt: skip

__all__ = [
    "Arrays", "CellSpace", "ChainSpace", "Files", "Genotype", "Layer", "Loaded", "Measure", "Paths", "SearchResult",
    "SearchRound", "Source", "Space", "TenasError", "build", "list_measures", "list_presets", "list_sources", "list_spaces",
    "measure", "rank", "search",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "search":
        # tenas.search is both package and function: importing any of its modules sets this attribute anyway.
        return import_module("tenas.search")
    if name in _FROM:
        return getattr(import_module(_FROM[name]), name)
    raise AttributeError(f"module 'tenas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
