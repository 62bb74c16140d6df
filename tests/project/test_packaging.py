"""Versions stand in one place, and what is installed is what stands there."""

import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import TINY, call, copy_repository, expected_files, files_below, succeed
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tenas
from tenas.code import code_digest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")]
    assert all(pinned), "constraints.txt has a line that is no pin"
    return {canonicalize_name(pin[1]): pin[2] for pin in pinned}


def needed(extras: set[str]) -> set[str]:
    """Everything that the package needs with these extras, through all levels, on this platform."""
    found: set[str] = set()
    waiting = [(canonicalize_name(PROJECT["name"]), frozenset(extras))]
    seen = set()
    while waiting:
        name, extras_of_it = waiting.pop()
        if (name, extras_of_it) in seen:
            continue
        seen.add((name, extras_of_it))
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras_of_it or {""}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found - {canonicalize_name(PROJECT["name"])}


def test_everything_that_is_needed_is_pinned_and_installed_in_that_version():
    pins = constraints()
    installed = {name: metadata.version(name) for name in needed({"dev"})}
    assert {"torch", "snakemake", "dvc", "pandas", "nas-bench-201", "pytest"} <= installed.keys()
    # A build of torch for one kind of processor says so after a plus: 2.14.1+cpu is the release 2.14.1.
    differ = {n: (v, pins.get(n)) for n, v in installed.items() if v.partition("+")[0] != pins.get(n) and n != "setuptools"}
    assert not differ


def test_no_other_file_has_versions():
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        assert not Requirement(text).specifier
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in makefile
    assert "==" not in makefile


def test_conda_environments_read_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "tenas"
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    jobs = ROOT / "workflow" / "envs"
    assert yaml.safe_load((jobs / "tenas.yaml").read_text(encoding="utf-8"))["dependencies"] == conda
    assert "--constraint constraints.txt --editable ." in (jobs / "tenas.post-deploy.sh").read_text(encoding="utf-8")


def test_containers_install_what_the_makefile_does():
    """They are not built here: what can go out of step is compared. They compile as they install."""
    dockerfile, definition = ((ROOT / "containers" / name).read_text(encoding="utf-8") for name in ("Dockerfile", "tenas.def"))
    (command,) = re.findall(r"-m pip install (.*--constraint.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    python = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"][0].partition("=")[2]
    for text, base in ((dockerfile, "FROM "), (definition, "From: ")):
        assert set(re.findall(r"-m pip install (.*)", text)) == {f"--no-cache-dir {command.replace('--no-compile ', '')}"}
        assert re.search(rf"^{base}python:{re.escape(python)}-slim", text, re.MULTILINE)
    copied = [name for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]]
    files = dict(line.split() for line in re.search(r"%files\n((?:    .*\n)+)", definition)[1].splitlines())
    assert sorted(copied) == sorted(files)
    assert files == {name: f"/opt/tenas/{name}" for name in files}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # All that the package declares of itself, and all that the workflow reads.
    declared = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"}
    assert declared | {"Snakefile", "tenas", "workflow", "config", "profiles"} == set(copied)


def test_every_file_of_the_package_is_installed_with_it():
    """Python's own are found; the others must be declared."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["tenas"]
    declared = {path for pattern in patterns for path in (ROOT / "tenas").glob(pattern)}
    files = {path for path in (ROOT / "tenas").rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert {path for path in files if path.suffix != ".py"} == declared
    assert ROOT / "tenas/benchmark/tables/nas-bench-201.parquet" in declared


@pytest.mark.workflow
@pytest.mark.long
def test_a_wheel_runs_the_workflow_in_an_empty_folder(tmp_path):
    """Installed beside the packages of this environment, and ahead of the repository: nothing is read from there."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source, site, folder = copy_repository(tmp_path / "source"), tmp_path / "site", tmp_path / "empty"
    options = ("--no-build-isolation", "--no-deps")
    succeed(call(*pip, "wheel", *options, "--wheel-dir", tmp_path / "wheels", source, cwd=tmp_path))
    (wheel,) = (tmp_path / "wheels").iterdir()
    succeed(call(*pip, "install", "--no-deps", "--target", site, wheel, cwd=tmp_path))
    listed = {f"{name}/{path}" for name in ("workflow", "config", "profiles") for path in files_below(ROOT / name)}
    assert files_below(site / "tenas/project") == {"Snakefile", *listed}
    folder.mkdir()

    def said(*command: object) -> str:
        return succeed(call(*command, cwd=folder, PYTHONPATH=str(site)))

    assert Path(said("tenas", "workflow").strip()) == site / "tenas/project/Snakefile"
    assert said(sys.executable, "-c", "import tenas; print(tenas.list_presets())").strip() == str(tenas.list_presets())
    # Files that a configuration of the package names come along too.
    assert re.search(r"^claims +1$", said("tenas", "run", "nas-bench-201", "--dry-run"), re.MULTILINE)
    few = {"measures": {"ntk_condition_number": {"repeats": 1, "batch": 4}, "linear_regions": {"repeats": 1, "count": 100}}}
    config = TINY | {
        "runs": {"digits": TINY["runs"]["digits"] | {"search": few | {"prune": 3}, "retrain": None, "retraining": {}}}
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    said("tenas", "run", "mine.yaml", "--cores", "2")
    assert files_below(folder / "results/digits") == expected_files(config, "digits", folder)
    # The code has the digests that it has in the repository, so a clone and a package read each other's results.
    made = json.loads((folder / "results/digits/seed0/round1/scores/1.json").read_text(encoding="utf-8"))
    assert made["code_sha256"] == code_digest()
    said("tenas", "run", "mine.yaml", "--report", "results/report.html")
    assert "seed 0" in said("tenas", "show", "results/digits")


def test_what_the_package_declares():
    assert metadata.version("tenas") == tenas.__version__
    (script,) = metadata.entry_points(group="console_scripts", name="tenas")
    assert script.value == "tenas.cli:console"
    imported = {
        found[1]
        for path in (ROOT / "tenas").rglob("*.py")
        for found in re.finditer(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    modules = {
        "sklearn": "scikit-learn", "pydantic_core": "pydantic", "PIL": "pillow", "yaml": "pyyaml", "nas_201_api": "nas-bench-201",
    }  # fmt: skip
    declared = {Requirement(text).name for text in PROJECT["dependencies"]}
    distributions = metadata.packages_distributions()
    third_party = {modules.get(name, name) for name in imported if name in distributions} - {"tenas"}
    assert third_party <= declared
