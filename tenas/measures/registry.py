"""The registry of measures: a decorator adds one, and what drives a search or a study finds it by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tenas.errors import TenasError
from tenas.measures.threads import one_thread


@dataclass(frozen=True)
class Measure:
    """``function(network, images)``, or ``function(network, images, labels)`` where ``needs_labels``, gives a number.

    On a CPU it runs on one thread (``one_thread``): its bits follow from the kind of processor, not from the number of threads.
    Which way a measure is good, and whether it can be negative, is said where it can be read without torch:
    ``tenas/schemas/search.yaml``, by ``tenas.settings.measure_traits``.
    """

    name: str
    function: Callable[..., float]
    needs_labels: bool

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
        """The measure of a batch. Raises TenasError for labels that are missing, and for a value that isn't a number."""
        if self.needs_labels and labels is None:
            raise TenasError(f"The measure {self.name} is one of a loss: it needs the labels of the images.")
        value = self.function(network, images, labels) if self.needs_labels else self.function(network, images)
        if math.isnan(value):
            raise TenasError(
                f"The measure {self.name} of this network is not a number: its values overflow in {_dtype(network)}."
            )
        return value


MEASURES: dict[str, Measure] = {}


def _dtype(network: nn.Module) -> torch.dtype | str:
    return next((parameter.dtype for parameter in network.parameters()), "its numbers")


def measure(name: str, *, needs_labels: bool = False) -> Callable[[Callable], Callable]:
    """A decorator that adds a function to the registry under ``name``, and has it run on one thread whoever calls it."""

    def add(function: Callable) -> Callable:
        if name in MEASURES:
            raise ValueError(f"two measures have the name {name}")
        function = one_thread()(function)
        MEASURES[name] = Measure(name, function, needs_labels)
        return function

    return add
