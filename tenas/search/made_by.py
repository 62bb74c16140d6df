"""What a decision of a search follows from, and which code a stage of it runs."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tenas.code import code_digest
from tenas.files import sha256, sha256_of
from tenas.measures.catalogue import get_measure
from tenas.references import is_reference
from tenas.spaces import BUILT_IN, Space, get_space


def space_modules(space: Space, *, networks: bool = False) -> list[str]:
    """The modules of a space, by name or reference; with ``networks`` those of its networks too."""
    if space.reference in BUILT_IN:
        own = [BUILT_IN[space.reference].partition(":")[0]]
    else:
        own = ["tenas.spaces.custom" if space._token else space.reference]
    return [*own, *([space.networks] if networks and isinstance(space.networks, str) else [])]


def space_code(space: Space, *modules: str, networks: bool = False) -> str:
    """The digest of the code of ``modules`` and of a space; with ``networks`` that of its networks too.

    A space that no file holds has a digest of its own in each process: nothing else is taken for made by the same code.
    """
    digest = code_digest(*modules, *space_modules(space, networks=networks))
    return sha256_of(f"{digest} {space._token}") if space._token else digest


def stage_code(stage: str, settings: Mapping[str, Any], measures: Iterable[str] = (), *, networks: bool = False) -> str:
    """The digest of the code that a stage runs: its own closure, the space's, and that of the measures that it takes.

    ``settings``: of the search or study, for its space. ``measures``: names or references. ``networks``: whether the stage builds
    networks.
    """
    used = []
    for name in measures:
        # Of a measure of one's own its record, and its function where the record names that.
        used += [name] if is_reference(name) else []
        used += [get_measure(name).module] if isinstance(get_measure(name).function, str) else []
    return space_code(get_space(settings["space"]), f"tenas.stages.{stage}", *dict.fromkeys(used), networks=networks)


def measuring_code(stage: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """``stage_code`` of a stage that measures; ``entry``: the round, or the study, with its ``measures``."""
    return stage_code(stage, settings, entry["measures"], networks=True)


def training_code(space: Space) -> str:
    """The digest of the code that a training runs, short or long."""
    return space_code(space, "tenas.retrain.stage", networks=True)


def ranking_code(stage: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """``stage_code`` of a stage that ranks by measures: which way a measure of one's own is good stands in its own file."""
    return stage_code(stage, settings, filter(is_reference, entry.get("measures", ())))


def input_name(file: Path) -> str:
    """What a decision calls a file: with its round, where it is of one. Runs have any name, and data sets can be moved."""
    return "/".join(file.parts[-2:]) if re.fullmatch(r"round\d+", file.parent.name) else file.name


def made_by(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]],
    entry: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a decision follows from. No time and no place: the same decision is the same bytes wherever it was taken.

    ``entry``: the round, where the stage ranks by its measures.
    """
    return {
        "settings": dict(settings),
        "code_sha256": ranking_code(stage, settings, entry),
        "inputs": {input_name(Path(path)): sha256(path) for path in inputs},
    }
