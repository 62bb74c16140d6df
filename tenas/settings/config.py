"""The models of the workflow's configuration (config/config.yaml). No torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tenas.settings.base import Distinct, Model, Whole
from tenas.settings.study import Study

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# Files that lie beside the runs in results/.
TAKEN = ("claims", "table_search", "report")


def _name(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("name", "must be a text: put it in quotation marks")
    if NAME.fullmatch(value) is None:
        raise PydanticCustomError("name", "must be at most 100 letters, digits, '_', '.' and '-', a letter or a digit first")
    if {value.lower(), value.lower().rpartition(".")[0]} & set(TAKEN):
        raise PydanticCustomError("name", "must not be that of a file of the results")
    return value


def _apart(value: dict[str, Any]) -> dict[str, Any]:
    """Names are those of folders, and on some disks `A` and `a` are the same one."""
    names = [name.lower() for name in value]
    for place, (name, lower) in enumerate(zip(value, names, strict=True)):
        if lower in names[:place]:
            other = list(value)[names.index(lower)]
            raise PydanticCustomError("apart", "{names} would share a folder on some disks", {"names": f"{other!r} and {name!r}"})
    return value


Name = Annotated[str, BeforeValidator(_name)]
Apart = AfterValidator(_apart)
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]


class Threads(Model):
    """Processor threads of a job."""

    score: Annotated[Whole, Field(ge=1, le=1024)] = 1
    """Threads of a job that scores: on the CPU it has as many processes of one thread."""
    retrain: Annotated[Whole, Field(ge=1, le=1024)] = 2
    """Threads of a job that trains."""


class TableSearch(Model):
    """Searches that look accuracies up, for what a run finds to stand against."""

    budgets: Annotated[list[Annotated[Whole, Field(ge=1, le=15625)]], Field(min_length=1), Distinct] = [
        1, 10, 54, 100, 1000,
    ]  # fmt: skip
    """Cells that a search may look at."""
    seeds: Annotated[Whole, Field(ge=1, le=100_000)] = 100
    """Searches of each method on each data set, with seeds from 0."""


class Dataset(Model):
    """Where images come from."""

    source: str
    """Name of a source (docs/data.md), or reference to one's own."""
    path: str | None = None
    """Folder or file of the source; not for digits."""
    images: Annotated[Whole, Field(ge=2, le=10_000)] = 10_000
    """Images that the search may draw from, a seeded sample of the training part."""
    side: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Height and width that images are resized to; by default the source's own."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Seed of the sample."""


class Run(Model):
    """A search for each seed, and the retraining of what it finds."""

    space: str
    """Name of a space, or reference to one's own."""
    dataset: str
    """Name of a data set of the configuration."""
    preset: str
    """Name of a preset of config/presets, or path of a YAML file."""
    search: dict[str, Any] = {}
    """Keys of the preset that are different; a measure that is null is left out."""
    limits: dict[str, Any] = {}
    """Limits on the network that is trained in the end: parameters, flops, latency."""
    trainings: str | None = None
    """What a round of trainings does: real, table, table:COLUMN, none; null for what the preset says."""
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct]
    """Seeds; each is a search of its own, in ``results/<run>/seed<k>/``."""
    retrain: str | None = None
    """Name of a preset of config/retrain, or null for a search alone."""
    retraining: dict[str, Any] = {}
    """Keys of that preset that are different."""


class Config(Model):
    """The configuration of the workflow."""

    shards: Annotated[Whole, Field(ge=1, le=10_000)] = 2
    """Jobs that a round of a search is split into, at most one per subject; the result does not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where jobs score and train: cpu, cuda, or auto: to score the CPU, to train a GPU where there is one. On a cluster whose
    login node has none say cuda."""
    threads: Threads = Threads()
    """Processor threads of a job."""
    benchmark: dict[str, Annotated[str, Field(min_length=1)] | None] = {}
    """Table of a space: CSV, CSV.gz or Parquet, one row per cell; ``builtin`` for the one that comes with the project, which
    is also what a space has that is not named here; null for none."""
    claims: str | None = None
    """File of published figures, to be set beside the results of the runs that it names: ``results/claims.json`` and ``.md``."""
    table_search: TableSearch | None = None
    """Searches on the table of nas-bench-201, which make ``results/table_search.csv``; null for none."""
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1), Apart]
    """Data sets by name."""
    runs: Annotated[dict[Name, Run], Apart] = {}
    """Runs by name; each makes ``results/<name>/``."""
    studies: Annotated[dict[Name, Study], Apart] = {}
    """Correlation studies by name; each makes ``results/<name>/``."""
