"""Search spaces: what can be chosen. No torch."""

import os
from collections.abc import Iterator, Mapping
from secrets import token_hex

from tenas.code import is_reference
from tenas.errors import TenasError, one_of
from tenas.files import read_json
from tenas.references import load_object, reference_of
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
from tenas.spaces.custom import CellSpace, ChainSpace, Layer

# Name -> reference, the same form as for users' spaces.
BUILT_IN = {"nas-bench-201": "tenas.spaces.nas_bench_201:SPACE", "darts": "tenas.spaces.darts:SPACE"}


# Spaces that no file defines, by name.
_MADE_HERE: dict[str, Space] = {}


class _Spaces(Mapping[str, Space]):
    """Mapping of the built-in spaces, by name, imported on first access."""

    def __getitem__(self, name: str) -> Space:
        if name not in BUILT_IN:
            raise KeyError(name)
        return get_space(name)

    def __iter__(self) -> Iterator[str]:
        return iter(BUILT_IN)

    def __len__(self) -> int:
        return len(BUILT_IN)


SPACES = _Spaces()

__all__ = [
    "SPACES", "CellSpace", "ChainSpace", "Choice", "Edge", "Genotype", "Layer", "Mask", "Round", "Space", "Trial", "get_space",
    "known", "load_genotype", "parse_genotype",
]  # fmt: skip


def get_space(space: str | Space) -> Space:
    """Get a space by name or by reference (``path/to/file.py:object``); a space object is returned unchanged.

    Raises TenasError for an unknown name, and for a reference to anything but a space.
    """
    if isinstance(space, Space):
        return space
    if is_reference(space):
        found = load_object(space, "space")
        if not isinstance(found, Space):
            raise TenasError(f"{space!r} is a {type(found).__name__}, not a space: see tenas.spaces.CellSpace and ChainSpace.")
        # Tables, settings and trainings are found by a space's name.
        if found.name in BUILT_IN and BUILT_IN[found.name] != space:
            raise TenasError(f"The space {space} has the name {found.name!r} of a built-in space: choose another one.")
        # A built-in space keeps its name.
        if BUILT_IN.get(found.name) != space:
            found._reference = space
        return found
    if space in _MADE_HERE:
        return _MADE_HERE[space]
    if space not in BUILT_IN:
        raise one_of("space", space, [*BUILT_IN, "path/to/file.py:object"])
    return get_space(BUILT_IN[space])


def known(space: str | Space) -> Space:
    """Get a space, and register an object without a reference: settings and files of this process can then name it.

    An object found in an imported module gets a reference to it. Any other object (made in a script or notebook) is registered
    by its name, in this process only. Raises TenasError if another space has that name.
    """
    if not isinstance(space, Space):
        return get_space(space)
    if space._reference is None and space is not SPACES.get(space.name):
        space._reference = reference_of(space)
        if space._reference is None:
            if space.name in BUILT_IN:
                raise TenasError(f"{space.name!r} is the name of a built-in space: choose another one.")
            space._token = space._token or token_hex()
            _MADE_HERE[space.name] = space
    return space


def load_genotype(genotype: Genotype | str | os.PathLike[str], space: str | Space | None = None) -> Genotype:
    """Get a genotype from an object, a JSON file (a path that ends in .json) or a space's text.

    Without ``space``, a JSON file names its space, and a text is tried with each space in turn.
    """
    if isinstance(genotype, Genotype):
        if space is not None and genotype.space is not get_space(space):
            raise TenasError(f"The genotype {genotype.arch!r} is of {genotype.space.name}, not {get_space(space).name}.")
        return genotype
    if is_json_path(genotype):
        value = read_json(genotype, "genotype")
        return genotype_from_json(get_space(space or str(value.get("space"))), value, f"The genotype {genotype}")
    return parse_genotype(str(genotype), space)


def parse_genotype(text: str, space: str | Space | None = None) -> Genotype:
    """Get a genotype from its text; without ``space``, each built-in space is tried in turn. Reads no file.

    For texts out of files: as a path, one could name a file whose space is code.
    """
    if space is not None:
        return get_space(space).parse(text)
    reasons = []
    for candidate in SPACES.values():
        try:
            return candidate.parse(text)
        except WrongFormError:
            continue
        except TenasError as error:
            reasons.append(error)
    # WrongFormError: not the form of this space, so try the next. A text of the right form has its own error.
    raise (reasons[-1] if reasons else TenasError(f"{text!r} is not the text of a genotype of any space ({', '.join(SPACES)})."))
