"""Fixtures that several test files share: runs that have ended. Tests read them; one that changes something works on a copy."""

from pathlib import Path

import pytest
from runs import DEFAULT, FUNNEL, ROOT, TINY, call, copy_repository, made_once, snakemake, succeed, write_config, write_table

__all__ = ["ROOT", "TINY", "call", "copy_repository", "snakemake", "succeed", "write_config"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of three rounds of operators, retrained and exported."""

    def make(folder: Path) -> None:
        write_config(folder, TINY)
        succeed(snakemake(folder))

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def finished_default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the default preset: rounds of cells, short trainings, retraining."""

    def make(folder: Path) -> None:
        write_config(folder, DEFAULT)
        succeed(snakemake(folder))

    return made_once(tmp_path_factory, "finished_default", make)


@pytest.fixture(scope="session")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny search that goes from operators over cells to trainings, within limits, with a table, a study and claims."""

    def make(folder: Path) -> None:
        write_table(folder)
        write_config(folder, FUNNEL)
        succeed(snakemake(folder))

    return made_once(tmp_path_factory, "funnel", make)
