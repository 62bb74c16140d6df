"""Models of a search's settings: measures, rounds, limits, preset, search.json. No torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from tenas.settings.base import Amount, Distinct, Flag, Model, Whole, number_of

Positive = Annotated[Whole, Field(ge=1, le=1_000_000)]
# Upper bounds within what some machine can hold.
Channels = Annotated[Whole, Field(ge=1, le=4096)]
Cells = Annotated[Whole, Field(ge=1, le=1000)]
Weights = Literal["kaiming_fan_in", "kaiming_fan_out", "pytorch", "normal"]


class _Repeated(Model):
    repeats: Positive
    """Measurements of each subject."""
    weights: Weights
    """Scheme of the initial weights (tenas.networks.initialise)."""
    redraw: Flag
    """Whether each repeat draws new weights; otherwise all repeats of a round share one draw."""


class OnABatch(_Repeated):
    """Settings of a measure of a network on one batch of images."""

    batch: Annotated[Whole, Field(ge=2, le=10_000)]
    """Images per batch."""
    channels: Channels
    """Channels of the network's first stage. In a preset also ``trained``: those of the finally trained network, at most 16."""
    cells: Cells
    """Cells of the network: per stage for cells with one input, in all for those with two; repeats of a chain's layers. In a
    preset also ``trained``: those of the finally trained network, at most 8."""
    inputs: Literal["images", "noise"] = "images"
    """Inputs: images of the data set, or standard normal noise of their shape."""


class OnRegions(_Repeated):
    """Settings of linear regions."""

    inputs: Literal["crops", "images"]
    """Inputs: random 3x3 crops of one random channel each, for the cells without stem and classifier; or whole images, for the
    whole network."""
    count: Annotated[Whole, Field(ge=2, le=10_000_000)]
    """Number of inputs; of whole images at most as many as the data set has."""
    blocks: Positive
    """Number of forward passes over which the inputs are split, at most ``count``."""
    channels: Channels
    """Channels of the network's first stage."""
    cells: Cells = 1
    """Cells of the network for whole images."""

    @model_validator(mode="after")
    def _blocks_have_inputs(self) -> "OnRegions":
        if self.blocks > self.count:
            raise PydanticCustomError("blocks", "'blocks' is {blocks}; it must be at most 'count', which is {count}", dict(self))
        return self


# Largest sizes for ``trained``: the network is measured a thousand times.
MOST_AS_TRAINED = {"channels": 16, "cells": 8}

MEASURE_SETTINGS: dict[str, type[_Repeated]] = {"batch": OnABatch, "regions": OnRegions}

Change = Literal["log", "relative", "absolute"]
Ranks = Literal["average", "dense", "ordinal"]
Aggregate = Literal["rank_sum", "log_rank_sum"]
Images = Literal["shared", "own"]


# What the trials of a round share by default.
SHARED: tuple[tuple[str, Any], ...] = (("images", "shared"), ("own_weights", []))


class _Pruning(Model):
    change: Change
    """Comparison of a trial (b) with the whole network (a) in each repeat: log a - log b, (a - b) / a, a - b."""
    decimals: Annotated[Whole, Field(ge=0, le=15)] | None = None
    """Decimals to which the change in each repeat is rounded; null for no rounding."""
    ranks: Ranks
    """Ranks of equal changes: their mean, dense (equal, without gaps), or by position in the list of trials."""
    aggregate: Aggregate = "rank_sum"
    """Aggregation of the ranks by several measures: their sum, or the sum of their logarithms."""
    images: Images = "shared"
    """Whether all trials of a repeat have the same inputs; otherwise each draws its own, also for the whole network."""
    own_weights: Annotated[list[str], Distinct] = []
    """Measures for which each trial also draws its own weights, used with and without its operator; only with own images."""
    measures: dict[str, Any]
    """Measures: name (or reference to a user-defined one) -> settings."""

    @model_serializer(mode="wrap")
    def _without_shared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out at their defaults, as in records from before these keys existed.
        return {key: value for key, value in handler(self).items() if (key, value) not in SHARED}


class OperatorsRound(_Pruning):
    """A round that prunes operators of a supernet (TE-NAS)."""

    kind: Literal["operators"] = "operators"
    prune: Positive = 1
    """Number of operators pruned per edge in a round; the last one always stays."""
    edge: tuple[str, Whole] | None = None
    """Cell type and number of the only edge that the round prunes; null for all edges."""


class OperatorsEntry(OperatorsRound):
    """An entry for rounds of operators in a preset: repeated until one operator per edge is left."""

    times: Positive | None = None
    """Maximum number of such rounds; null for as many as leave one operator per edge."""
    order: Literal["together", "edge_by_edge"] = "together"
    """Whether a round prunes all edges at once; otherwise each edge has rounds of its own."""


class EdgesRound(_Pruning):
    """A round that prunes edges: each node keeps as many as the space defines (DARTS)."""

    kind: Literal["edges"] = "edges"


class CellsRound(Model):
    """A round that measures discrete cells and keeps the best."""

    kind: Literal["cells"] = "cells"
    sample: Annotated[Positive | Literal["all"] | str | None, BeforeValidator(number_of)] = None
    """Cells to draw from what is left of the space: a number, ``all``, or a user's CSV file with a column ``arch``; null for
    the cells kept by the round before."""
    listed: Positive | None = None
    """Number of cells in that file: counted when a preset is resolved, not to be set by hand."""
    keep: Positive
    """Number of cells kept."""
    aggregate: Aggregate = "log_rank_sum"
    """Aggregation of the ranks by several measures: their sum, or the sum of their logarithms (AZ-NAS)."""
    each: Annotated[Whole, Field(ge=0)] = 0
    """Number of cells kept as the best by each single measure; the best by all measures together fill the rest."""
    measures: dict[str, Any]
    """Measures, as in rounds of operators."""


class TrainingRound(Model):
    """A round that trains cells for a few epochs, or looks such trainings up, and keeps the best by validation accuracy."""

    kind: Literal["training"] = "training"
    keep: Positive = 1
    """Number of cells kept."""
    training: dict[str, Any] = {}
    """Changes to the settings of the run's retraining: fewer epochs, a validation part."""
    column: str | None = None
    """Column of the space's table to look up instead of training; null to train."""


KINDS: dict[str, type[Model]] = {
    "operators": OperatorsRound, "edges": EdgesRound, "cells": CellsRound, "training": TrainingRound,
}  # fmt: skip


class LatencyLimit(Model):
    """A limit on a column of a table, such as measured latencies."""

    table: str
    """CSV or Parquet file with a column ``arch``, or ``index`` for the numbers of the space's table."""
    column: str
    """Column with the value of each cell; cells without a value, or with a negative one, are left out."""
    most: Amount
    """Largest allowed value, or a share of the largest cell's, such as ``"60%"``."""


class Limits(Model):
    """Limits on the finally trained network, not on the search network."""

    parameters: Amount | None = None
    """Most trainable parameters: a number, or a share of the largest cell's, such as ``"60%"``."""
    flops: Amount | None = None
    """Most multiply-adds per image, likewise."""
    latency: LatencyLimit | None = None
    """Limit on a column of a user's table."""


def _trainings(value: str) -> str:
    if re.fullmatch(r"real|none|table(:.+)?", value) is None:
        raise PydanticCustomError("allowed", "real, table, table:COLUMN, none")
    return value


class Preset(Model):
    """A preset of a search. Rounds inherit the keys that they do not set."""

    exclude: Annotated[list[str], Distinct] = []
    """Operators excluded before the first round."""
    prune: Positive = 1
    """Number of operators pruned per edge in a round of operators."""
    change: Change = "log"
    """Comparison of a trial (b) with the whole network (a) in each repeat: log a - log b, (a - b) / a, a - b."""
    decimals: Annotated[Whole, Field(ge=0, le=15)] | None = None
    """Decimals to which the change in each repeat is rounded; null for no rounding."""
    ranks: Ranks = "average"
    """Ranks of equal changes: their mean, dense (equal, without gaps), or by position in the list of trials."""
    aggregate: Aggregate | None = None
    """Aggregation of the ranks by several measures; null for rank_sum in rounds that prune, log_rank_sum in rounds of cells."""
    images: Images = "shared"
    """Whether all trials of a repeat have the same inputs; otherwise each draws its own, also for the whole network."""
    own_weights: Annotated[list[str], Distinct] = []
    """Measures for which each trial also draws its own weights, used with and without its operator; only with own images."""
    order: Literal["together", "edge_by_edge"] = "together"
    """Whether a round of operators prunes all edges at once; otherwise each edge has rounds of its own."""
    measures: dict[str, Any] = Field(default={})
    """Settings of measures by name; a round that names no measures takes all of them."""
    rounds: list[Any] = Field(default=[{"kind": "operators"}, {"kind": "edges"}], min_length=1)
    """The rounds in order. ``operators`` is repeated until one operator per edge is left."""
    limits: dict[str, Any] = {}
    """Limits on the finally trained network: parameters, flops, latency."""
    trainings: Annotated[str, AfterValidator(_trainings)] = "real"
    """Mode of a round of trainings: ``real``, ``table`` or ``table:COLUMN`` (looked up), ``none`` (left out)."""


class Settings(Model):
    """Resolved settings of a search: the content of search.json."""

    space: str
    preset: str
    exclude: list[str]
    rounds: list[dict[str, Any]] = Field(min_length=1)
    limits: dict[str, Any] = {}
    network: dict[str, Any] = {}
    """The finally trained network: channels, cells, stem, side (null for that of the images)."""
