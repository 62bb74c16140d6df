"""Measures of a network at initialisation, for any ``torch.nn.Module`` that maps a batch to logits (zero-cost proxies).

``MEASURES`` is the catalogue: ``MEASURES[name](network, images, labels)``; only loss-based measures need labels. Each function
can be imported from here; torch is imported with the first of them.
"""

from importlib import import_module

from tenas.measures.catalogue import BUILT_IN, MEASURES, Measure, get_measure

_MORE = {
    "az_nas_scores": "tenas.measures.az_nas",
    "SaturatedWarning": "tenas.measures.regions",
    "condition_number": "tenas.measures.ntk",
    "ntk_gram": "tenas.measures.ntk",
    "one_thread": "tenas.measures.threads",
}

__all__ = ["MEASURES", "Measure", "get_measure", *BUILT_IN, *_MORE]


def __getattr__(name: str) -> object:
    if name in BUILT_IN:
        return BUILT_IN[name].resolved
    if name in _MORE:
        return getattr(import_module(_MORE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
