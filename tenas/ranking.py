"""Rank networks of one's own: ``tenas.rank``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from tenas.errors import LARGEST_SEED, TenasError, whole_number
from tenas.measures.catalogue import BUILT_IN, Measure, get_measure
from tenas.search.repeats import standard_error
from tenas.search.shortlist import aggregated, mean_score, on_scale, places
from tenas.seeds import derive_seed

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


def rank(
    networks: Mapping[str, Callable[[], nn.Module]],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    measures: Iterable[str | Measure] = ("swap", "synflow", "flops"),
    repeats: int = 3,
    batch: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank networks of one's own untrained, as a round of cells of a search does; one row per network, the best first.

    Args:
        networks: name -> function without arguments that makes the network, a ``torch.nn.Module`` newly initialised.
        images: (n, 3, h, w), as the networks take them.
        labels: (n,) integers from 0, for loss-based measures.
        measures: of ``list_measures()`` or one's own; the default are those of the first round of the preset ``default``.
        repeats: draws of weights and of images; all networks of a draw see the same images.
        batch: images of a draw.
        seed: of the draws. The same seed gives the same table on the same kind of processor.

    Returns:
        Columns for each measure: ``<measure>_score``, the mean over the draws, of logarithms where the measure is never negative,
        more being better; ``<measure>_se``, its standard error, NaN below two draws; ``<measure>_rank``, 1 for the best. Rows are
        in the order of ``log_rank_sum``, which penalises a bad rank in any measure (Lee and Ham, CVPR 2024, equation 10).

    Raises:
        TenasError: for networks that are not given as functions, a measure given twice or one that takes no images, labels that
            are more or fewer than the images, repeats below 1, a batch larger than the images; and whatever a measure raises.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> def layers(width):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))
        >>> images = torch.randn(32, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> table = rank({"narrow": lambda: layers(2), "wide": lambda: layers(64)}, images, measures=["naswot", "flops"])
        >>> list(table.index)
        ['wide', 'narrow']
        >>> table["flops_rank"].tolist()
        [1.0, 2.0]
    """
    import pandas as pd
    import torch

    seed, repeats = whole_number(seed, "seed", 0, LARGEST_SEED), whole_number(repeats, "repeats")
    batch = whole_number(batch, "batch")
    if not isinstance(images, torch.Tensor):
        raise TenasError(
            f"The images are a {type(images).__name__}, not a tensor (n, 3, height, width), as the networks take it."
        )
    if isinstance(measures, str):
        raise TenasError(f"'measures' is the text {measures!r}; it must be a list of names: [{measures!r}].")
    labels = None if labels is None else torch.as_tensor(labels)
    records = [get_measure(measure) for measure in measures]
    _check_ranking(networks, records, repeats, batch, len(images))
    if labels is not None and len(labels) != len(images):
        raise TenasError(f"There are {len(labels)} labels for {len(images)} images.")
    values = np.empty((len(records), len(networks), repeats))
    kind = images.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        for repeat in range(repeats):
            drawn = np.random.default_rng([seed, repeat]).choice(len(images), batch, replace=False)
            seen = images[drawn], None if labels is None else labels[drawn]
            for row, (name, make) in enumerate(networks.items()):
                values[:, row, repeat] = _values_of(name, make, records, *seen, seeds=(seed, repeat))
    table, ranks = pd.DataFrame(index=pd.Index(networks, name="network")), []
    for measure, scores in zip(records, values, strict=True):
        table[f"{measure.name}_score"] = mean_score(measure, scores, np.ones((1, repeats)))[0]
        table[f"{measure.name}_se"] = [
            math.nan if error == "" else error for error in map(standard_error, on_scale(measure, scores))
        ]
        table[f"{measure.name}_rank"] = places(table[f"{measure.name}_score"].to_numpy())
        ranks.append(table[f"{measure.name}_rank"].to_numpy())
    table["log_rank_sum"] = aggregated(ranks, "log_rank_sum")
    return table.iloc[np.lexsort((ranks[0], -table["log_rank_sum"].to_numpy()))]


def _values_of(
    name: str,
    make: Callable[[], nn.Module],
    measures: Sequence[Measure],
    images: Tensor,
    labels: Tensor | None,
    *,
    seeds: tuple[int, int],
) -> list[float]:
    """Measure a network by each of ``measures``. After a user's, which may change anything, it is made again."""
    import torch
    from torch.nn import Module

    from tenas.networks.initialise import seeded

    found: list[float] = []
    network = None
    for measure in measures:
        if network is None:
            with torch.inference_mode(False), seeded(derive_seed(*seeds, "weights")):
                network = make()
            if not isinstance(network, Module):
                raise TenasError(f"The function of the network {name!r} makes a {type(network).__name__}, not a torch.nn.Module.")
        # What a network draws (dropout) does not depend on the other measures.
        with seeded(derive_seed(*seeds, measure.name, "draws")):
            found.append(measure(network, images.clone(), None if labels is None else labels.clone()))
        if measure is not BUILT_IN.get(measure.name):
            network = None
    return found


def _check_ranking(networks: Mapping[str, object], measures: Sequence[Measure], repeats: int, batch: int, images: int) -> None:
    """Raise TenasError for arguments of ``rank`` that make no ranking."""
    if not isinstance(networks, Mapping):
        raise TenasError(
            f"The networks are a {type(networks).__name__}, not a dictionary from names to functions that make them."
        )
    if not networks or not measures:
        raise TenasError("A ranking needs at least one network and one measure.")
    for name, make in networks.items():
        if not callable(make) or hasattr(make, "parameters"):
            raise TenasError(f"The network {name!r} must be a function that makes it: each repeat draws other weights.")
    names = [measure.name for measure in measures]
    for measure in measures:
        if names.count(measure.name) > 1:
            raise TenasError(
                f"The measure {measure.name} is given twice; its columns would have one name, and its rank count twice."
            )
        if measure.inputs != "batch":
            raise TenasError(f"The measure {measure.name} is of regions of inputs, not of images: it cannot be taken here.")
    if repeats < 1:
        raise TenasError(f"'repeats' is {repeats}; it must be at least 1.")
    if not 1 <= batch <= images:
        raise TenasError(f"'batch' is {batch}; it must be 1 to {images}, the number of images.")
