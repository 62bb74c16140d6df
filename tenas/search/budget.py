"""Resolve the limits of a run to numbers. Imports torch to count the costs of operators."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from tenas.benchmark.index import read_column
from tenas.search.limits import resolve
from tenas.spaces import get_space
from tenas.spaces.sums import Sums


@cache
def _costs(space: str, side: int, classes: int, network: tuple[tuple[str, Any], ...]) -> dict[str, Sums]:
    """Costs of the operators, cached for all runs of a configuration that train the same networks: counting takes seconds."""
    from tenas.networks.costs import operator_costs

    return operator_costs(get_space(space), side=side, classes=classes, **dict(network))


def resolved_limits(settings: Mapping[str, Any], *, classes: int, side: int) -> dict[str, Any]:
    """Resolve the limits of a run (tenas.search.limits.resolve) to the value of its limits.json.

    ``classes`` and ``side``: of the images; a side in the settings of the retraining takes precedence.

    ``classes`` and ``side``: of the images, unless the retraining has a side. Raises TenasError for limits that no cell meets.
    """
    space, limits, network = get_space(settings["space"]), settings["limits"], dict(settings["network"])
    side = network.pop("side", None) or side
    space.check_side(side)
    sums = {}
    if {"parameters", "flops"} & limits.keys():
        sums = _costs(settings["space"], side, classes, tuple(network.items()))
    latency = limits.get("latency")
    table = read_column(latency["table"], latency["column"], space) if latency else None
    found = resolve(space, settings["exclude"], limits, sums, table)
    return found | {"network": {**network, "classes": classes, "side": side}}
