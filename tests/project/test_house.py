"""What surrounds the code is true: the version, the citation, the table of where to change what, the hooks and the CI."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import tenas

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def places() -> list[str]:
    """What the table of CONTRIBUTING.md names: files, folders, and objects in files (``path:name``)."""
    rows = [line for line in text("CONTRIBUTING.md").splitlines() if line.startswith("| ")]
    found = [place for row in rows for place in re.findall(r"`([^`\s]+)`", row) if "/" in place]
    return [*dict.fromkeys([*found, *(link for row in rows for link in re.findall(r"\]\(([^)]+)\)", row))])]


def defined(path: Path) -> set[str]:
    """Names that a Python file or a file of rules defines, at any depth."""
    if path.suffix == ".smk":
        return set(re.findall(r"^(?:def|rule) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_version_is_written_in_one_place():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tenas.__version__"}
    assert text("tenas/__init__.py").count("__version__ = ") == 1
    others = [path for path in (ROOT / "tenas").rglob("*.py") if f'"{tenas.__version__}"' in path.read_text(encoding="utf-8")]
    assert others == [ROOT / "tenas" / "__init__.py"]


def test_the_citation_is_that_of_this_version_and_of_the_paper():
    citation = yaml.safe_load(text("CITATION.cff"))
    # What the format asks for: https://github.com/citation-file-format/citation-file-format, schema 1.2.0.
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software"
    assert citation["version"] == tenas.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Gong", "Wang"]
    assert (paper["year"], paper["url"]) == (2021, "https://arxiv.org/abs/2102.11535")


def test_the_changelog_begins_with_what_is_unreleased_then_this_version():
    headings = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    date = yaml.safe_load(text("CITATION.cff"))["date-released"]
    assert headings[:2] == ["[Unreleased]", f"[{tenas.__version__}] - {date}"]


def test_contributing_names_the_twelve_changes():
    rows = [line for line in text("CONTRIBUTING.md").splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 12
    assert len(places()) > 30


@pytest.mark.parametrize("place", places())
def test_what_contributing_names_exists(place):
    name, _, thing = place.partition(":")
    path = ROOT / name
    assert path.exists()
    if thing:
        assert thing in defined(path)


def test_the_continuous_integration_is_the_script():
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert re.findall(r"^make .*", text(".ci/run"), re.MULTILINE) == ["make check"]


def test_what_the_continuous_integration_leaves_out_is_run_each_night():
    workflow = yaml.safe_load(text(".github/workflows/nightly.yml"))
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == ["make test", "make stress"]
    assert re.search(r"^test:.*\n\tpytest \$\(PARALLEL\)$", text("Makefile"), re.MULTILINE)


def test_hooks_use_tools_that_the_makefile_uses_too():
    (repository,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)[1].split()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin"
        assert tool in lint
        assert tool in PYPROJECT["project"]["optional-dependencies"]["dev"]


def test_coverage_has_one_floor_and_one_command():
    assert 0 <= PYPROJECT["tool"]["coverage"]["report"]["fail_under"] <= 100
    assert PYPROJECT["tool"]["coverage"]["run"]["branch"]
    assert PYPROJECT["tool"]["coverage"]["run"]["patch"] == ["_exit"]
    assert re.findall(r"^(\w+):.*\n\t.*--cov", text("Makefile"), re.MULTILINE) == ["check"]
    assert "fail-under" not in text("Makefile") + text(".ci/run")
