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
    """A study: measures of a sample of cells, against their accuracy in the space's table."""

    space: str
    """Name of a space, or reference to a user-defined one."""
    dataset: str
    """Name of a data set of the configuration."""
    cells: Annotated[Whole, Field(ge=10)] | Literal["all"]
    """Number of cells drawn from the table, or all of them."""
    exclude: Annotated[list[str], Distinct] = []
    """Operators whose cells are excluded from the sample, like a preset's ``exclude``."""
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the sample, of weights, of images and of the bootstrap."""
    measures: dict[str, Any] = Field(min_length=1)
    """Measures: name (or reference to a user-defined one) -> settings, as in a preset of a search."""
    together: list[Annotated[list[str], Distinct, Field(min_length=2)]] = []
    """Sets of those measures to correlate also in combination: by the sum of their log ranks, and by the sum of their ranks."""


def study_settings(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Resolve the settings of a study: the content of study.json. Errors begin with ``where``."""
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
    """Read the settings of a study from its study.json, and check them: the file may have been edited."""
    return study_settings(read_json(path, "study settings"), str(path))
