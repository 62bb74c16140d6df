"""The catalogue of measures (the literature's zero-cost proxies): one record each, readable without torch.

The package's measures and those of users are handled alike: a record names its function, and a configuration names a record by
``name``, ``package.module:object`` or ``path/to/file.py:object``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

from tenas.code import is_reference
from tenas.errors import TenasError, one_of
from tenas.measures.threads import full_precision, one_thread
from tenas.references import load_object

if TYPE_CHECKING:
    from torch import Tensor, nn


# Rankings by several measures (tenas.settings.rounds.Aggregate), which stand beside measures in tables of studies.
COMBINED = ("rank_sum", "log_rank_sum")


@dataclass(frozen=True)
class Measure:
    """A measure of a network at initialisation: ``measure(network, images[, labels])`` returns a number.

    ``function``: a function of (network, images), and of labels if ``needs_labels``; or a reference to one, imported at the first
    call. ``lower_is_better``: its orientation. ``signed``: whether it can be negative; if not, it has a logarithm. ``inputs``:
    ``batch``, images (n, 3, h, w) of a network; ``regions``, a sequence of blocks of inputs (linear regions). ``sums``: the cost
    (tenas.networks.costs) that it equals for a discrete cell, computed as a sum over operators. ``grouped``: the module of
    tenas.measures that measures many networks side by side at once (tenas.networks.grouped), by its functions ``values`` and
    ``together``. ``source``: the publication.
    """

    name: str
    function: Callable[..., float] | str
    lower_is_better: bool = False
    signed: bool = False
    needs_labels: bool = False
    inputs: Literal["batch", "regions"] = "batch"
    sums: str | None = None
    grouped: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[A-Za-z0-9_.-]+", self.name) is None:
            raise TenasError(f"A measure's name is letters, digits, '_', '.' and '-', not {self.name!r}.")
        if self.name in COMBINED:
            raise TenasError(f"A measure cannot be named {self.name!r}: so is a ranking by several measures.")
        if self.inputs not in ("batch", "regions"):
            raise TenasError(f"The measure {self.name} takes {self.inputs!r} for 'inputs'; it must be batch or regions.")

    @cached_property
    def resolved(self) -> Callable[..., float]:
        """The function, imported if ``function`` is a reference."""
        if not isinstance(self.function, str):
            return self.function
        return cast("Callable[..., float]", load_object(self.function, f"function of the measure {self.name}"))

    @property
    def module(self) -> str:
        """The module or reference that holds the function's code."""
        if isinstance(self.function, str):
            module = self.function.rpartition(":")[0]
            return self.function if module.endswith(".py") else module
        return self.function.__module__

    @property
    def modules(self) -> list[str]:
        """The modules or references whose code a value follows from."""
        return [self.module, *([] if self.grouped is None else [f"tenas.measures.{self.grouped}"])]

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor | None = None) -> float:
        """The score of a batch as a Python number.

        Computed on one thread, so that its bits depend on the processor only; on a GPU in whole float32.
        Raises TenasError for missing labels, for NaN, and for a negative value if the record does not allow it.
        """
        if self.needs_labels and labels is None:
            raise TenasError(f"The measure {self.name} is loss-based: it needs image labels.")
        with _settings_kept(self.name), one_thread(), full_precision():
            value = self.resolved(network, images, labels) if self.needs_labels else self.resolved(network, images)
        try:
            # NumPy and torch scalars, on any device, become Python numbers.
            value = value.item() if hasattr(value, "item") else value
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError
            is_number = not math.isnan(value)
        except OverflowError as error:
            raise TenasError(f"The measure {self.name} gave a whole number too large for a float: give math.inf.") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise TenasError(f"The measure {self.name} gave a {type(value).__name__}, not a number.") from error
        if not is_number:
            dtype = next((parameter.dtype for parameter in network.parameters()), "its numbers")
            why = f": its values overflow in {dtype}" if isinstance(self.function, str) else " (NaN)"
            raise TenasError(f"The measure {self.name} of this network is not a number{why}.")
        if value < 0 and not self.signed:
            if isinstance(self.function, str):
                instead = ", which log_synflow takes" if self.name == "synflow" else ""
                raise TenasError(f"{self.name} is not defined for this network, for which it is negative ({value:g}){instead}.")
            raise TenasError(
                f"The measure {self.name} gave {value:g}; one that can be negative says so in its record (signed=True)."
            )
        return value


@contextmanager
def _settings_kept(name: str) -> Iterator[None]:
    """Restore torch's settings that a user's measure may change. Raises TenasError for another default dtype."""
    import torch

    dtype, deterministic = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
        if torch.get_default_dtype() != dtype:
            raise TenasError(f"The measure {name} leaves torch with another default dtype.")
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_deterministic_debug_mode() != deterministic:
            torch.set_deterministic_debug_mode(deterministic)


def _shipped(*measures: Measure) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


BASELINES = "tenas.measures.baselines"
BUILT_IN = _shipped(
    Measure("ntk_condition_number", "tenas.measures.ntk:ntk_condition_number", lower_is_better=True, grouped="ntk_grouped"),
    Measure("linear_regions", "tenas.measures.regions:linear_regions", inputs="regions", grouped="regions_grouped"),
    Measure("parameters", "tenas.measures.costs:parameters", sums="parameters"),
    Measure("flops", "tenas.measures.costs:flops", sums="flops"),
    Measure("layers", "tenas.measures.costs:layers"),
    Measure("gradient_norm", f"{BASELINES}:gradient_norm", needs_labels=True),
    Measure("snip", f"{BASELINES}:snip", needs_labels=True),
    Measure("grasp", f"{BASELINES}:grasp", needs_labels=True, signed=True),
    Measure("synflow", "tenas.measures.synaptic_flow:synflow"),
    Measure("log_synflow", "tenas.measures.synaptic_flow:log_synflow"),
    Measure("fisher", f"{BASELINES}:fisher", needs_labels=True),
    Measure("jacobian_covariance", f"{BASELINES}:jacobian_covariance", signed=True),
    Measure("naswot", f"{BASELINES}:naswot", signed=True),
    Measure("swap", "tenas.measures.activations:swap"),
    Measure("near", "tenas.measures.activations:near"),
    Measure("az_expressivity", "tenas.measures.az_nas:az_expressivity", signed=True),
    Measure("az_progressivity", "tenas.measures.az_nas:az_progressivity", signed=True),
    Measure("az_trainability", "tenas.measures.az_nas:az_trainability", signed=True),
    Measure("zen", f"{BASELINES}:zen", signed=True),
    Measure("zico", f"{BASELINES}:zico", needs_labels=True, signed=True),
)


def get_measure(measure: str | Measure) -> Measure:
    """The measure of a name or a reference; a record is returned unchanged. Raises TenasError for an unknown name."""
    if isinstance(measure, Measure):
        return measure
    if is_reference(measure):
        found = load_object(measure, "measure")
        if not isinstance(found, Measure):
            raise TenasError(
                f"{measure!r} is a {type(found).__name__}, not a measure: give the function its record, "
                "tenas.measures.Measure(name, function, ...)."
            )
        return found
    if measure not in BUILT_IN:
        raise one_of("measure", measure, [*BUILT_IN, "path/to/file.py:object"])
    return BUILT_IN[measure]


class _Measures(Mapping[str, Measure]):
    """The package's measures by name; references resolve too."""

    def __getitem__(self, name: str) -> Measure:
        return get_measure(name) if is_reference(name) else BUILT_IN[name]

    def __iter__(self) -> Iterator[str]:
        return iter(BUILT_IN)

    def __len__(self) -> int:
        return len(BUILT_IN)


MEASURES = _Measures()
