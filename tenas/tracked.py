"""What DVC has to know of: users' files that a configuration names, as dependencies of the stages of dvc.yaml that read them.

DVC compares the files that a stage lists, and a configuration names others: a measure of one's own, a table, a folder of images.
A stage that does not list them would be taken for up to date after they have changed.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from tenas.benchmark.builtin import BUILTIN
from tenas.code import PACKAGE, closure, is_installed, is_reference
from tenas.errors import TenasError
from tenas.search.made_by import space_modules
from tenas.settings.base import preset_file, read_yaml
from tenas.settings.search import is_list
from tenas.spaces import get_space


def check_tracked(config: Mapping[str, Any], pipeline: Path) -> None:
    """Raise TenasError for a file of the user's that a stage of ``pipeline`` reads and does not list.

    ``config``: checked (tenas.config.load_config). The runs are those whose results the pipeline's commands name.
    """
    read: Any = read_yaml(pipeline, "pipeline")
    stages = {name: stage.get("do", stage) for name, stage in read["stages"].items()}
    commands = str([stage.get("cmd") for stage in stages.values()])
    for name, run in config["runs"].items():
        if f"results/{name}/" not in commands:
            continue
        listed = {name: [pipeline.parent / path for path in _dependencies(stage, config)] for name, stage in stages.items()}
        for stage, files in users_files(run, config).items():
            # Under other names of stages, one of them has to list the file.
            paths = listed.get(stage, [path for paths in listed.values() for path in paths])
            reader = f"The stage {stage!r} of {pipeline.name}" if stage in stages else f"A stage of {pipeline.name}"
            for file in files:
                if not is_installed(file) and not any(_is_within(file, path) for path in (PACKAGE, *paths)):
                    shown = os.path.relpath(file, pipeline.parent)
                    raise TenasError(
                        f"{reader} reads {shown}, which is not among its dependencies: add it, or DVC will take results of "
                        "another version of it for those of this one."
                    )


def forget_seeds(config: Mapping[str, Any], folder: Path) -> None:
    """Remove what stage ``gather`` has made below ``folder`` of seeds that the configuration has no more.

    DVC counts all files of a folder that a stage depends on: ``dvc.lock`` would name files that no stage makes.
    """
    for name, run in config["runs"].items():
        kept = {f"seed{seed}" for seed in run["seeds"]}
        for path in (folder / "logs" / name / "gathered").glob("seed*"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _dependencies(stage: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The paths that a stage lists, with values of the configuration in place of ``${runs.digits.preset}``."""

    def value(found: re.Match[str]) -> str:
        with suppress(KeyError, TypeError):
            return str(reduce(lambda at, key: at[key], found[1].split("."), config))
        return found[0]

    listed = [entry if isinstance(entry, str) else next(iter(entry)) for entry in stage.get("deps") or ()]
    return [os.path.join(stage.get("wdir") or "", re.sub(r"\$\{([^}]+)\}", value, path)) for path in listed]


def _is_within(file: Path, folder: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def users_files(run: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Users' files that each stage of a run reads, by the stage's name in dvc.yaml."""
    settings, dataset = run["settings"], config["datasets"][run["dataset"]]
    rounds = settings["rounds"]
    space = get_space(settings["space"])
    spaces = _code(space_modules(space, networks=True)) if is_reference(space.reference) else []
    measures = _code(name for entry in rounds for name in entry.get("measures", ()) if is_reference(name))
    own = is_reference(dataset["source"])
    source = _code([dataset["source"]]) if own else []
    if dataset["path"] and (own or dataset["source"] in ("folder", "npz", "prepared")):
        source.append(Path(dataset["path"]))
    table = config["benchmark"].get(settings["space"])
    tables = [Path(table)] if table not in (None, BUILTIN) else []
    # Short trainings are looked up in a column of the table, or made of the images.
    columns = [entry.get("column") for entry in rounds if entry["kind"] == "training"]
    read = [entry["sample"] for entry in rounds if is_list(entry.get("sample"))]
    read += filter(None, [settings["limits"].get("latency", {}).get("table")])
    presets = [preset_file(kind, run[key]) for kind, key in (("search", "preset"), ("retrain", "retrain")) if run[key]]
    return {
        "prepare": source,
        "settings": [*spaces, *measures, *presets],
        "search": [*spaces, *measures, *map(Path, read), *(tables if any(columns) else ()), *(() if all(columns) else source)],
        "draw": spaces,
        "lookup": [*spaces, *tables],
        "retrain": [*spaces, *source],
        "export": spaces,
        "plot": [*spaces, *measures, *tables],
    }  # fmt: skip


def _code(modules: Iterable[str]) -> list[Path]:
    """Users' files among the code of modules."""
    return list(closure(list(dict.fromkeys(modules))))
