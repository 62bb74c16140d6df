"""Check the workflow's configuration as a whole before anything runs. Imports torch only for a run with limits.

``python -m tenas.config FILE`` does that alone: DVC puts names and seeds of the file into commands, and asks first.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.benchmark.builtin import BUILTIN, CHECKSUMS, builtin_table
from tenas.boundary import bounded
from tenas.data.sources import check_source, get_source, known_side
from tenas.errors import TenasError, one_of
from tenas.files import read_json
from tenas.report.claims import read_claims
from tenas.settings.base import checked, project_file, read_yaml
from tenas.settings.config import Config, check_input
from tenas.settings.search import run_settings
from tenas.settings.sizes import check_sizes
from tenas.settings.study import study_settings
from tenas.spaces import get_space
from tenas.tracked import check_tracked, forget_seeds

# Lower bounds for a data set not prepared yet: parameters grow with the classes, multiply-adds with the side too.
FEWEST_CLASSES, SMALLEST_SIDE = 2, 8


@contextmanager
def _part(name: str) -> Iterator[None]:
    """Prefix errors in the block with the part of the configuration that they are about."""
    try:
        yield
    except TenasError as error:
        raise TenasError(f"{name}: {error}") from error


def load_config(value: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Check a configuration, fill in defaults and resolve presets.

    Runs gain ``settings`` and ``retrain_settings``; the entries of ``studies`` become their settings. ``benchmark`` gains
    ``builtin`` for spaces that it does not name and whose table comes with the project.

    Raises TenasError for anything that would stop a run later: unknown keys, spaces, data sets, sources, presets, faulty claims,
    limits that no cell meets.
    """
    config = checked(Config, dict(value), where).model_dump()
    config["benchmark"] = dict.fromkeys(CHECKSUMS, BUILTIN) | config["benchmark"]
    for space, index in config["benchmark"].items():
        with _part(f"{where}: 'benchmark'"):
            known = get_space(space)
            if index == BUILTIN:
                builtin_table(known)
    for name, dataset in config["datasets"].items():
        with _part(f"{where}: data set {name!r}"):
            check_source(dataset)
    for name, run in config["runs"].items():
        config["runs"][name] = _run(name, run, config["datasets"], where)
    if config["table_search"] is not None and config["benchmark"].get("nas-bench-201") is None:
        raise TenasError(f"{where}: 'table_search' needs a table under 'benchmark.nas-bench-201'.")
    for name, study in config["studies"].items():
        config["studies"][name] = _study(name, study, config, where)
    if not config["runs"] and not config["studies"]:
        raise TenasError(f"{where}: there is nothing to do: neither 'runs' nor 'studies' has an entry.")
    if config["claims"] is not None:
        config["claims"] = str(project_file(config["claims"]))
        with _part(f"{where}: 'claims'"):
            read_claims(config["claims"])
    _check_inputs(config, where)
    return config


def _check_inputs(config: Mapping[str, Any], where: str) -> None:
    """Raise TenasError for a file of the user's that no rule can take as an input."""
    for name, dataset in config["datasets"].items():
        check_input(dataset["path"] or "", f"{where}: 'datasets.{name}.path'")
    for space, table in config["benchmark"].items():
        check_input(table or "", f"{where}: 'benchmark.{space}'")
    check_input(config["claims"] or "", f"{where}: 'claims'")
    for name, run in config["runs"].items():
        settings = run["settings"]
        check_input(
            settings["limits"].get("latency", {}).get("table", ""), f"{where}: run {name!r}: the table of 'limits.latency'"
        )
        for number, entry in enumerate(settings["rounds"], start=1):
            if isinstance(listed := entry.get("sample"), str):
                check_input(listed, f"{where}: run {name!r}: round {number}: 'sample'")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of configuration. Raises TenasError if it is no mapping, or has a key twice: Snakemake would take the last."""
    # JSON has tabulators, which YAML does not.
    json = Path(path).suffix == ".json"
    value = read_json(path, "configuration") if json else read_yaml(path, "configuration")
    if not isinstance(value, dict):
        raise TenasError(f"The configuration {path} is {'empty' if value is None else 'not a mapping of keys to values'}.")
    return value


def _run(name: str, run: dict[str, Any], datasets: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Add ``settings`` and ``retrain_settings`` to a run, and check its limits."""
    if run["dataset"] not in datasets:
        raise TenasError(f"{where}: {one_of(f'data set of the run {name!r}', run['dataset'], datasets)}")
    dataset = datasets[run["dataset"]]
    with _part(f"{where}: run {name!r}"):
        settings, retraining = run_settings(run, dataset["source"])
        _check_sides(settings, retraining, known_side(dataset))
        check_sizes(settings, images_of(run["dataset"], dataset)[1], retraining)
        check_limits(name, settings, run["dataset"], dataset)
    return run | {"retrain_settings": retraining, "settings": settings}


def _study(name: str, study: dict[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Resolve the settings of a study, and check that its space has a table."""
    if name.lower() in [run.lower() for run in config["runs"]]:
        raise TenasError(f"{where}: {name!r} is the name of a run and of a study; their results would share a folder.")
    if study["dataset"] not in config["datasets"]:
        raise TenasError(f"{where}: {one_of(f'data set of the study {name!r}', study['dataset'], config['datasets'])}")
    settings: dict[str, Any] = study_settings(study, f"{where}: study {name!r}")
    with _part(f"{where}: study {name!r}"):
        _check_sides({"space": settings["space"], "rounds": [settings]}, None, known_side(config["datasets"][study["dataset"]]))
        check_sizes(settings, images_of(study["dataset"], config["datasets"][study["dataset"]])[1])
    if not config["benchmark"].get(settings["space"]):
        raise TenasError(f"{where}: study {name!r} needs the table of {settings['space']} under 'benchmark'.")
    return settings


def _check_sides(settings: Mapping[str, Any], retraining: Mapping[str, Any] | None, side: int | None) -> None:
    """Check that networks of the space take images of ``side`` where measures or a retraining see whole ones; None: not known."""
    space = get_space(settings["space"])
    entries = [entry for round in settings["rounds"] for entry in round.get("measures", {}).values()]
    sides = [side] if any(entry["inputs"] != "crops" for entry in entries) else []
    for seen in (*sides, *([] if retraining is None else [retraining["side"] or side])):
        if seen is not None:
            space.check_side(seen)


def images_of(name: str, dataset: Mapping[str, Any]) -> tuple[int, int]:
    """Classes and side of a data set: those of its source or of the prepared images, or else lower bounds.

    ``name``, ``dataset``: of the configuration. Prepared images count only if they were prepared from this entry.
    """
    with suppress(TenasError, KeyError, TypeError):
        card = read_json(layout.prepared(layout.CARD).format(dataset=name), "data card")
        if card["provenance"]["settings"] == dict(dataset):
            return int(card["classes"]), int(card["side"])
    source = get_source(dataset["source"])
    return source.classes or FEWEST_CLASSES, dataset["side"] or source.side or SMALLEST_SIDE


def check_limits(run: str, settings: Mapping[str, Any], name: str, dataset: Mapping[str, Any]) -> None:
    """Raise TenasError if no cell can be within the limits of a run's search.

    With lower bounds of classes and side, what is refused here would be refused with any; rule limits checks again, exactly.
    Once that rule has accepted these settings, nothing is counted again: every job on a cluster reads the configuration.
    """
    if not settings["limits"]:
        return
    with suppress(TenasError, KeyError, TypeError):
        taken = read_json(layout.results(layout.LIMITS).format(run=run), "limits")
        if taken["made_by"]["settings"] == settings:
            return
    from tenas.search.budget import resolved_limits

    classes, side = images_of(name, dataset)
    resolved_limits(settings, classes=classes, side=side)


def main(paths: Iterable[str]) -> int:
    """Check configurations that are each a whole one; for a stage of dvc.yaml, also that it lists what they name.

    Returns the exit status.
    """

    def check() -> int:
        for path in paths:
            config = load_config(read_config(path), path)
            # DVC sets this for the commands of a stage, which run beside dvc.yaml.
            if "DVC_STAGE" in os.environ and (pipeline := Path("dvc.yaml")).is_file():
                check_tracked(config, pipeline)
                forget_seeds(config, pipeline.parent)
        return 0

    return bounded(check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
