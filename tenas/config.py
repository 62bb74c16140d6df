"""The workflow's configuration, checked as a whole before anything runs. No torch, unless limits have to be looked at."""

from collections.abc import Mapping

from tenas.benchmark.builtin import BUILTIN, CHECKSUMS, builtin_table
from tenas.data.sources import check_source
from tenas.errors import TenasError, one_of
from tenas.report.claims import read_claims
from tenas.settings.base import checked
from tenas.settings.config import Config
from tenas.settings.retrain import retrain_settings
from tenas.settings.search import search_settings
from tenas.settings.study import study_settings
from tenas.spaces import get_space


def load_config(value: Mapping, where: str = "config") -> dict:
    """A configuration with defaults filled in and presets resolved: ``runs.<name>.settings`` and ``.retrain_settings``.
    The entries of ``studies`` are their settings. ``benchmark`` has ``builtin`` for spaces of which it says nothing and of which
    a table comes with the project.

    Raises TenasError for anything that would stop a run later: unknown keys, spaces, data sets, sources, presets, faulty claims.
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
