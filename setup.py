"""Include the workflow, its configurations and its profiles in the built package, as ``tenas/project``.

In the repository they are next to the package, where the Snakemake catalog and readers expect them; ``tenas.code.PROJECT`` is
the folder that has them, in either case. All else is declared in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT = ("Snakefile", "workflow", "config", "profiles")


class BuildWithProject(build_py):
    """Build the package and copy the project's files into it; an editable install reads them in the repository."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        to = Path(self.build_lib, "tenas", "project")
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        for name in PROJECT:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copyfile
            copy(name, to / name)


setup(cmdclass={"build_py": BuildWithProject})
