"""The workflow's configuration, checked as a whole before anything runs. No torch, unless a run has limits to be checked."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tenas import layout
from tenas.benchmark.builtin import BUILTIN, CHECKSUMS, builtin_table
from tenas.data.sources import check_source, get_source
from tenas.errors import TenasError, one_of
from tenas.files import read_json
from tenas.report.claims import read_claims
from tenas.settings.base import checked
from tenas.settings.config import Config
from tenas.settings.retrain import retrain_settings
from tenas.settings.search import search_settings
from tenas.settings.study import study_settings
from tenas.spaces import get_space

# Of a data set that has not been looked at: parameters grow with the classes, multiply-adds with the side too.
FEWEST_CLASSES, SMALLEST_SIDE = 2, 8


def load_config(value: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """A configuration with defaults filled in and presets resolved: ``runs.<name>.settings`` and ``.retrain_settings``.

    The entries of ``studies`` are their settings. ``benchmark`` has ``builtin`` for spaces of which it says nothing and of which
    a table comes with the project.

    Raises TenasError for anything that would stop a run later: unknown keys, spaces, data sets, sources, presets, faulty claims,
    limits that no cell meets.
    """
    config = checked(Config, dict(value), where).model_dump()
    config["benchmark"] = dict.fromkeys(CHECKSUMS, BUILTIN) | config["benchmark"]
    for space, index in config["benchmark"].items():
        try:
            known = get_space(space)
            if index == BUILTIN:
                builtin_table(known)
        except TenasError as error:
            raise TenasError(f"{where}: 'benchmark': {error}") from error
    for name, dataset in config["datasets"].items():
        try:
            check_source(dataset)
        except TenasError as error:
            raise TenasError(f"{where}: data set {name!r}: {error}") from error
    for name, run in config["runs"].items():
        if run["dataset"] not in config["datasets"]:
            raise TenasError(f"{where}: {one_of(f'data set of the run {name!r}', run['dataset'], config['datasets'])}")
        try:
            retraining = None if run["retrain"] is None else retrain_settings(run["retrain"], run["retraining"])
            run["retrain_settings"] = retraining
            run["settings"] = search_settings(
                run["space"],
                run["preset"],
                run["search"],
                retraining=retraining,
                limits=run["limits"],
                trainings=run["trainings"],
                datasets=(run["dataset"], config["datasets"][run["dataset"]]["source"]),
            )
            check_limits(name, run["settings"], run["dataset"], config["datasets"][run["dataset"]])
        except TenasError as error:
            raise TenasError(f"{where}: run {name!r}: {error}") from error
    if config["table_search"] is not None and config["benchmark"].get("nas-bench-201") is None:
        raise TenasError(f"{where}: 'table_search' needs an index file under 'benchmark.nas-bench-201'.")
    for name, study in config["studies"].items():
        if name in config["runs"]:
            raise TenasError(f"{where}: {name!r} is the name of a run and of a study; their results would share a folder.")
        if study["dataset"] not in config["datasets"]:
            raise TenasError(f"{where}: {one_of(f'data set of the study {name!r}', study['dataset'], config['datasets'])}")
        config["studies"][name] = study_settings(study, f"{where}: study {name!r}")
        if not config["benchmark"].get(study["space"]):
            raise TenasError(f"{where}: study {name!r} needs the index of {study['space']} under 'benchmark'.")
    if not config["runs"] and not config["studies"]:
        raise TenasError(f"{where}: there is nothing to do: neither 'runs' nor 'studies' has an entry.")
    if config["claims"] is not None:
        read_claims(config["claims"])
    return config


def images_of(name: str, dataset: Mapping[str, Any]) -> tuple[int, int]:
    """Classes and side of a data set, as far as they are known before it is prepared; else the fewest and smallest it can have.

    ``name``, ``dataset``: of the configuration. What is prepared already counts only if it was prepared from this entry.
    """
    with suppress(TenasError, KeyError, TypeError):
        card = read_json(layout.prepared(layout.CARD).format(dataset=name), "data card")
        if card["provenance"]["settings"] == dict(dataset):
            return int(card["classes"]), int(card["side"])
    source = get_source(dataset["source"])
    return source.classes or FEWEST_CLASSES, dataset["side"] or source.side or SMALLEST_SIDE


def check_limits(run: str, settings: Mapping[str, Any], name: str, dataset: Mapping[str, Any]) -> None:
    """Raise TenasError where no cell can be within the limits of a run's search.

    Where classes or side are not known yet, what is refused here would be refused with any; rule limits checks again, exactly.
    Nothing is counted again once that rule has taken these settings: jobs on a cluster read the configuration each.
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
