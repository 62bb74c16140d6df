"""What DVC has to know of: users' files that a configuration names, as dependencies of the stages of dvc.yaml that read them.

DVC compares the files that a stage lists, and a configuration names others: a measure of one's own, a table, a folder of images.
A stage that does not list them would be taken for up to date after they have changed.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tenas.code import LIBRARIES, PACKAGE, closure, is_reference
from tenas.errors import TenasError
from tenas.search.made_by import space_modules
from tenas.settings.base import preset_files, read_yaml
from tenas.settings.search import is_list
from tenas.spaces import get_space


def check_tracked(config: Mapping[str, Any], pipeline: Path) -> None:
    """Raise TenasError for a file of the user's that a stage of ``pipeline`` reads and does not list.

    ``config``: checked (tenas.config.load_config). The runs are those whose results the pipeline's commands name.
    """
    read: Any = read_yaml(pipeline, "pipeline")
    stages = read["stages"]
    named = str([stage.get("cmd") for stage in stages.values()])
    for run in [run for name, run in config["runs"].items() if f"results/{name}/" in named]:
        for stage, files in users_files(run, config).items():
            listed = [entry if isinstance(entry, str) else next(iter(entry)) for entry in stages.get(stage, {}).get("deps", ())]
            folders = [(pipeline.parent / path).resolve() for path in listed]
            for file in files if stage in stages else ():
                if not _is_installed(file) and not any(file.resolve().is_relative_to(folder) for folder in folders):
                    shown = os.path.relpath(file, pipeline.parent)
                    raise TenasError(
                        f"The stage {stage!r} of {pipeline.name} reads {shown}, which is not among its dependencies: add it, or "
                        "DVC will take results of another version of it for those of this one."
                    )


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
    tables = [Path(table)] if table not in (None, "builtin") else []
    trainings = [entry for entry in rounds if entry["kind"] == "training"]
    read = [entry["sample"] for entry in rounds if is_list(entry.get("sample"))]
    read += filter(None, [settings["limits"].get("latency", {}).get("table")])
    presets = [_preset(kind, run[key]) for kind, key in (("search", "preset"), ("retrain", "retrain")) if run[key]]
    return {
        "prepare": source,
        "settings": [*spaces, *measures, *presets],
        "search": [
            *spaces, *measures, *map(Path, read), *(source if any(not entry.get("column") for entry in trainings) else ()),
            *(tables if any(entry.get("column") for entry in trainings) else ()),
        ],
        "draw": spaces,
        "lookup": [*spaces, *tables],
        "retrain": [*spaces, *source],
        "export": spaces,
        "plot": [*spaces, *measures, *tables],
    }  # fmt: skip


def _code(modules: Iterable[str]) -> list[Path]:
    """Users' files among the code of modules."""
    found = closure(list(dict.fromkeys(modules)))
    return [file for file in found if not file.is_relative_to(PACKAGE)]


def _is_installed(file: Path) -> bool:
    return any(file.resolve().is_relative_to(folder) for folder in LIBRARIES)


def _preset(kind: str, preset: str) -> Path:
    return Path(preset) if preset.endswith((".yaml", ".yml")) else preset_files(kind)[preset]
