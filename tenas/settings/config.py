"""The models of the workflow's configuration (config/config.yaml). No torch."""

import os
import re
from typing import Annotated, Any, Literal, LiteralString

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tenas.errors import TenasError
from tenas.settings.base import Distinct, Model, Whole
from tenas.settings.study import Study

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# Files next to the runs in results/.
TAKEN = ("claims", "table_search", "report")


def refused(name: str) -> LiteralString | None:
    """Why a run or a data set cannot have a name; None if it can."""
    if NAME.fullmatch(name) is None:
        return "must be at most 100 letters, digits, '_', '.' and '-', a letter or a digit first"
    if {name.lower(), name.lower().rpartition(".")[0]} & set(TAKEN):
        return "must not be that of a file of the results"
    return None


def check_input(path: str, what: str) -> None:
    """Raise TenasError for a file that cannot be an input of a rule: Snakemake would take braces in its name for wildcards."""
    if set("{}") & set(path) and not os.path.isdir(path):
        raise TenasError(f"{what} is {path!r}; the workflow takes no file with braces in its path: rename it.")


def _name(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("name", "must be a text: put it in quotation marks")
    if (why := refused(value)) is not None:
        raise PydanticCustomError("name", why)
    return value


def _apart(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that differ in case only: names are folders, and some file systems ignore case."""
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
    """Threads of a scoring job: on the CPU, that many worker processes with one thread each."""
    retrain: Annotated[Whole, Field(ge=1, le=1024)] = 2
    """Threads of a training job."""


class TableSearch(Model):
    """Tabular searches, which look accuracies up: baselines for the results of runs."""

    budgets: Annotated[list[Annotated[Whole, Field(ge=1, le=15625)]], Field(min_length=1), Distinct] = [
        1, 10, 54, 100, 1000,
    ]  # fmt: skip
    """Number of cells that a search may look up."""
    seeds: Annotated[Whole, Field(ge=1, le=100_000)] = 100
    """Number of searches per method and data set, with seeds from 0."""


class Dataset(Model):
    """A data set: the source of its images, and the sample that a search reads."""

    source: str
    """Name of a source (docs/data.md), or reference to a user-defined one."""
    path: str | None = None
    """Folder or file of the source; not for digits."""
    images: Annotated[Whole, Field(ge=2, le=10_000)] = 10_000
    """Number of images that the search draws from, a seeded sample of the training part."""
    side: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Height and width of the resized images in pixels; by default those of the source."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Seed of the sample."""


class Run(Model):
    """One search per seed, and the retraining of the genotype found."""

    space: str
    """Name of a space, or reference to a user-defined one."""
    dataset: str
    """Name of a data set of the configuration."""
    preset: str
    """Name of a preset of config/presets, or path of a YAML file."""
    search: dict[str, Any] = {}
    """Changes to the preset; a measure set to null is left out."""
    limits: dict[str, Any] = {}
    """Limits on the finally trained network: parameters, flops, latency."""
    trainings: str | None = None
    """Mode of a round of trainings: real, table, table:COLUMN, none; null for that of the preset."""
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct]
    """Seeds, one search per seed, in ``results/<run>/seed<k>/``."""
    retrain: str | None = None
    """Name of a preset of config/retrain, or null for a search alone."""
    retraining: dict[str, Any] = {}
    """Changes to that preset."""


class Config(Model):
    """The configuration of the workflow."""

    shards: Annotated[Whole, Field(ge=1, le=10_000)] = 2
    """Number of jobs per round of a search, at most one per subject; does not affect the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the jobs: cpu, cuda, or auto (the CPU for scoring, a GPU for training if there is one). On a cluster whose login
    node has no GPU, set cuda."""
    threads: Threads = Threads()
    """Processor threads of a job."""
    benchmark: dict[str, Annotated[str, Field(min_length=1)] | None] = {}
    """Table of each space: CSV, CSV.gz or Parquet, one row per cell; ``builtin`` for the built-in one, which is also the default
    for spaces not named here; null for none."""
    claims: str | None = None
    """File of claims, to be compared with the results of the runs that it names: ``results/claims.json`` and ``.md``."""
    table_search: TableSearch | None = None
    """Searches on the table of nas-bench-201, written to ``results/table_search.csv``; null for none."""
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1), Apart]
    """Data sets by name."""
    runs: Annotated[dict[Name, Run], Apart] = {}
    """Runs by name; each writes ``results/<name>/``."""
    studies: Annotated[dict[Name, Study], Apart] = {}
    """Correlation studies by name; each writes ``results/<name>/``."""
