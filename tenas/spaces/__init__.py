"""Search spaces: what can be chosen. No torch."""

import os

from tenas.errors import TenasError, one_of
from tenas.files import read_json
from tenas.spaces.base import (
    Choice,
    Edge,
    Genotype,
    Mask,
    Round,
    Space,
    Trial,
    WrongFormError,
    genotype_from_json,
    is_json_path,
)
from tenas.spaces.darts import Darts
from tenas.spaces.nas_bench_201 import NasBench201

SPACES: dict[str, Space] = {space.name: space for space in (NasBench201(), Darts())}

__all__ = [
    "SPACES", "Choice", "Edge", "Genotype", "Mask", "Round", "Space", "Trial", "get_space", "load_genotype",
]  # fmt: skip


def get_space(space: str | Space) -> Space:
    """The space of a name; a space object is given back as it is. Raises TenasError for an unknown name."""
    if isinstance(space, Space):
        return space
    if space not in SPACES:
        raise one_of("space", space, SPACES)
    return SPACES[space]


def load_genotype(genotype: Genotype | str | os.PathLike, space: str | Space | None = None) -> Genotype:
    """A genotype from an object, a JSON file (a path that ends in .json) or a space's text.

    Without ``space`` a JSON file names its space itself, and a text is given to each space in turn.
    """
    if isinstance(genotype, Genotype):
        if space is not None and genotype.space is not get_space(space):
            raise TenasError(f"The genotype {genotype.arch!r} is of {genotype.space.name}, not {get_space(space).name}.")
        return genotype
    if is_json_path(genotype):
        value = read_json(genotype, "genotype")
        return genotype_from_json(get_space(space or str(value.get("space"))), value, f"The genotype {genotype}")
    if space is not None:
        return get_space(space).parse(genotype)
    reasons = []
    for candidate in SPACES.values():
        try:
            return candidate.parse(genotype)
        except WrongFormError:
            continue
        except TenasError as error:
            reasons.append(error)
    # A text in a space's own form has its fault named; what none of them knows is of no space.
    raise (
        reasons[-1] if reasons else TenasError(f"{genotype!r} is not the text of a genotype of any space ({', '.join(SPACES)}).")
    )
