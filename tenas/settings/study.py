"""Settings of a correlation study. No torch."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tenas.errors import TenasError
from tenas.files import read_json
from tenas.settings.base import Distinct, Model, Whole, checked
from tenas.settings.search import as_trained, measure_settings
from tenas.spaces import get_space


class Study(Model):
    """Measures of a sample of cells, against their accuracy in the space's table."""

    space: str
    """Name of a space, or reference to one's own."""
    dataset: str
    """Name of a data set of the configuration."""
    cells: Annotated[Whole, Field(ge=10)] | Literal["all"]
    """Cells that are drawn from the table, or all of them."""
    exclude: Annotated[list[str], Distinct] = []
    """Operators whose cells are left out of the table, as a preset's ``exclude`` leaves them out of a search."""
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the sample, of weights, of images and of the bootstrap."""
    measures: dict[str, Any] = Field(min_length=1)
    """What is measured: name of a measure (or reference to one's own) -> its settings, as in a preset of a search."""
    together: list[Annotated[list[str], Distinct, Field(min_length=2)]] = []
    """Sets of those measures that are correlated together as well: by the sum of their log ranks, and by that of their ranks."""


def study_settings(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The resolved settings of a study, what study.json holds. ``where`` begins the sentence of an error."""
    settings = checked(Study, value, where).model_dump()
    try:
        space = get_space(settings["space"])
        space.full_mask(settings["exclude"])
    except TenasError as error:
        raise TenasError(f"{where}: {error}") from error
    settings["measures"] = measure_settings(as_trained(settings["measures"], space.trained), where)
    for names in settings["together"]:
        for name in names:
            if name not in settings["measures"]:
                raise TenasError(f"{where}: 'together' names {name!r}, which is not among the study's measures.")
    return {**settings, "space": space.reference}


def read_study(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a study from its study.json, checked again: the file may have been edited."""
    return study_settings(read_json(path, "study settings"), str(path))
