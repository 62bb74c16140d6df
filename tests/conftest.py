"""Fixtures that several test files share: runs that have ended. Tests read them; one that changes something works on a copy."""

from pathlib import Path

import pytest
from helpers.runs import DEFAULT, FUNNEL, TINY, made_once, snakemake, succeed, write_config, write_table


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole workflows take minutes each: begun first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: not hasattr(item.module, "snakemake"))
