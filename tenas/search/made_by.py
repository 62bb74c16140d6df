"""Provenance of a decision: settings, inputs, and the digest of the code of its stage."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tenas.code import code_digest, is_reference
from tenas.files import sha256, sha256_of
from tenas.measures.catalogue import get_measure
from tenas.spaces import BUILT_IN, Space, get_space


def space_modules(space: Space, *, networks: bool = False) -> list[str]:
    """Modules of a space, by name or reference, including those of its networks if ``networks``."""
    if space.reference in BUILT_IN:
        own = [BUILT_IN[space.reference].partition(":")[0]]
    else:
        own = ["tenas.spaces.custom" if space._token else space.reference]
    return [*own, *([space.networks] if networks and isinstance(space.networks, str) else [])]


def space_code(space: Space, *modules: str, networks: bool = False) -> str:
    """Digest of the code of ``modules`` and of a space, including its networks if ``networks``.

    The digest of a space that no file defines is unique to the process: its results are never reused by another.
    """
    digest = code_digest(*modules, *space_modules(space, networks=networks))
    return sha256_of(f"{digest} {space._token}") if space._token else digest


def stage_code(stage: str, settings: Mapping[str, Any], measures: Iterable[str] = (), *, networks: bool = False) -> str:
    """Digest of the code of a stage: import closures of the stage itself, of the space, and of its measures.

    ``settings``: of the search or study, for its space. ``measures``: names or references. ``networks``: whether the stage builds
    networks.
    """
    used = []
    for name in measures:
        # A user's measure has a record, whose function may be in another module.
        used += [name] if is_reference(name) else []
        used += get_measure(name).modules if isinstance(get_measure(name).function, str) else []
    return space_code(get_space(settings["space"]), f"tenas.stages.{stage}", *dict.fromkeys(used), networks=networks)


def measuring_code(stage: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """``stage_code`` of a stage that measures. ``entry``: settings of the round or study, with ``measures``."""
    return stage_code(stage, settings, entry["measures"], networks=True)


def training_code(space: Space) -> str:
    """Digest of the code of a training, short or full."""
    return space_code(space, "tenas.retrain.stage", networks=True)


def ranking_code(stage: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """``stage_code`` of a stage that ranks by measures, including users' files, which say which way their measures are good."""
    return stage_code(stage, settings, filter(is_reference, entry.get("measures", ())))


def input_name(file: Path) -> str:
    """Name of a file in a decision: its own name, with that of its round's folder if it has one.

    The folders above are left out: runs may be renamed, and data sets moved.
    """
    return "/".join(file.parts[-2:]) if re.fullmatch(r"round\d+", file.parent.name) else file.name


def made_by(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]],
    entry: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Provenance of a decision, without time and place: equal decisions are equal bytes.

    ``entry``: settings of the round, if the stage ranks by its measures.
    """
    return {
        "settings": dict(settings),
        "code_sha256": ranking_code(stage, settings, entry),
        "inputs": {input_name(Path(path)): sha256(path) for path in inputs},
    }
