"""The state after the last round, and the genotype found."""

import os
from collections.abc import Mapping
from typing import Any

from tenas.search.shortlist import read_shortlist
from tenas.spaces import get_space
from tenas.spaces.base import Genotype


def found_genotype(settings: Mapping[str, Any], state: str | os.PathLike[str]) -> Genotype:
    """Read the genotype from the state after the last round. Raises TenasError while a choice is left."""
    space = get_space(settings["space"])
    if settings["rounds"][-1]["kind"] in ("operators", "edges"):
        return space.genotype(space.read_mask(state))
    return space.parse(read_shortlist(state, space).cells[0].arch)
