"""The layers of tests/layers.toml, which docs/architecture.md shows, held against what the modules import."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "tenas").rglob("*.py"))
TABLE = tomllib.loads((ROOT / "tests/layers.toml").read_text(encoding="utf-8"))["layer"]
# Part -> number of its layer, 0 at the bottom.
LAYERS = {part: level for level, layer in enumerate(reversed(TABLE)) for part in layer["parts"]}
# The package tenas.search is the function of that name too, whose module it imports when it is called.
CALLED = {Path("tenas/search/__init__.py"): {Path("tenas/api.py")}}


def unit(path: Path) -> str:
    """The part that a module belongs to: the most specific entry of the table."""
    found = [part for part in LAYERS if path.as_posix() == part or path.as_posix().startswith(f"{part}/")]
    assert found, f"{path} is in no layer of tests/layers.toml"
    return max(found, key=len)


def imports(path: Path) -> set[Path]:
    """The package's modules that a module imports, wherever in it."""
    names = set()
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    # What only a type checker imports is no import.
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in (node for node in ast.walk(tree) if not any(node in ast.walk(block) for block in typing)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        base = Path(*name.split("."))
        found |= {candidate for candidate in (base.with_suffix(".py"), base / "__init__.py") if candidate in MODULES}
    # The package itself is a docstring, a version, and names that are imported with their first use.
    return found - {Path("tenas/__init__.py")} - CALLED.get(path, set())


def test_every_entry_of_the_table_is_there():
    for part in LAYERS:
        assert (ROOT / part).exists(), part
    assert LAYERS["tenas/cli.py"] > LAYERS["tenas/search"] > LAYERS["tenas/measures"] > LAYERS["tenas/networks"]


def test_the_architecture_shows_the_table():
    rows = [f"| {layer['name']} | {', '.join(f'`{part}`' for part in layer['parts'])} | {layer['what']} |" for layer in TABLE]
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"\| layer \|.*?\n\n", text, re.DOTALL).group().splitlines()
    assert [row for row in shown if "`tenas/" in row] == rows, "\n".join(["docs/architecture.md is to have the rows", *rows])


@pytest.mark.parametrize("path", [m for m in MODULES if m.parts[1:] != ("__init__.py",)], ids=str)
def test_every_module_imports_from_its_own_layer_or_below(path):
    above = {str(i) for i in imports(path) if LAYERS[unit(i)] > LAYERS[unit(path)]}
    assert not above


def test_the_package_itself_imports_no_module_when_it_is_imported():
    loaded_ones = {name for name in loaded("import tenas", tops=False) if name.startswith("tenas.")}
    assert loaded_ones == set()


def test_its_names_are_there_without_torch():
    names = "tenas.list_spaces(), tenas.list_measures(), tenas.list_presets(), tenas.list_sources(), tenas.search, dir(tenas)"
    code = f"import tenas; {names}; [getattr(tenas, name) for name in tenas.__all__]; tenas.measure('naswot')"
    assert loaded(code).isdisjoint({"torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy"})


def test_the_parts_of_the_package_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if path.parts[1:] != ("__init__.py",):
            graph.setdefault(unit(path), set()).update(unit(i) for i in imports(path))
    graphlib.TopologicalSorter({k: v - {k} for k, v in graph.items()}).prepare()  # raises CycleError


STAGES = sorted(path.stem for path in (ROOT / "tenas/stages").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize(
    "module",
    ["cli", "config", "data", "spaces", "settings", "provenance", "measures", "benchmark", "report", "audit", "study.report",
     "search.prune", "search.limits", "search.sample", "search.shortlist", "search.finalists", "search.given", "search.made_by",
     "search.budget", "scoring.subjects", "scoring.table", "scoring.checkpoint", "scoring.shard", "scoring.workers"],
)  # fmt: skip
@pytest.mark.slow
def test_modules_that_start_without_torch(module):
    assert loaded(f"import tenas.{module}").isdisjoint({"torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy"})


def test_every_stage_is_known_without_torch_or_numpy():
    """Its signature is its subcommand: whoever asks for help must not wait for what a stage works with."""
    code = "; ".join(f"import tenas.stages.{stage}" for stage in STAGES)
    assert loaded(code).isdisjoint({"torch", "numpy", "scipy", "pandas", "pydantic", "yaml"})


def test_help_is_given_without_torch():
    code = "from tenas.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert end.code == 0"
    assert loaded(code).isdisjoint({"torch", "numpy", "scipy", "pandas"})


@pytest.mark.parametrize("module", ["scoring.score", "retrain", "measures.ntk", "networks"])
@pytest.mark.slow
def test_only_loading_a_data_set_imports_torchvision(module):
    assert "torch" in (names := loaded(f"import tenas.{module}"))
    assert "torchvision" not in names


def loaded(code: str, *, tops: bool = True) -> set[str]:
    """Modules that a fresh interpreter has loaded after running ``code``; with ``tops`` the top-level ones."""
    names = "{name.partition('.')[0] for name in sys.modules}" if tops else "sys.modules"
    code += f"\nimport sys; print('\\n'.join(sorted({names})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines())
