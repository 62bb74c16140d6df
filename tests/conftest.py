"""Fixtures that several test files share: runs that have ended. Tests read them; one that changes something works on a copy."""

import os
from pathlib import Path

import pytest
from helpers.runs import DEFAULT, FUNNEL, TINY, made_once, snakemake, succeed, write_config, write_table

# The fixtures below.
RUNS = {"finished", "finished_default", "funnel"}


def ended(tmp_path_factory: pytest.TempPathFactory, name: str, config: dict, table: bool = False) -> Path:
    """A folder in which a configuration has run, with ``write_table``'s files where it asks for them."""

    def make(folder: Path) -> None:
        if table:
            write_table(folder)
        write_config(folder, config)
        succeed(snakemake(folder))

    return made_once(tmp_path_factory, name, make)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of three rounds of operators, retrained and exported."""
    return ended(tmp_path_factory, "finished", TINY)


@pytest.fixture(scope="session")
def finished_default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the default preset: rounds of cells, short trainings, retraining."""
    return ended(tmp_path_factory, "finished_default", DEFAULT)


@pytest.fixture(scope="session")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny search that goes from operators over cells to trainings, within limits, with a table, a study and claims."""
    return ended(tmp_path_factory, "funnel", FUNNEL, table=True)


def pytest_configure() -> None:
    """One thread for each process, before torch is imported: those of two workers on two cores mostly wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a run that has ended, and all that runs the workflow as slow; begin with the files of such tests.

    They take minutes each, and no worker should be left with one at the end. Then those with other slow tests. Slow tests are not
    traced for coverage, which would double their time.
    """
    order = {}
    for item in items:
        if RUNS & set(getattr(item, "fixturenames", ())):
            item.add_marker("workflow")
        runs = any(item.get_closest_marker(name) for name in ("workflow", "dvc", "slurm"))
        if runs or item.get_closest_marker("long"):
            item.add_marker("slow")
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")
        place = 0 if runs else 1 if item.get_closest_marker("slow") else 2
        order[item.path] = min(place, order.get(item.path, place))
    items.sort(key=lambda item: order[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") and "TENAS_SHARED" not in os.environ:
        pytest.skip("TENAS_SHARED (a folder of real tables and images) is not set")
