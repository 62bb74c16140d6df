"""docs/architecture.md's table of layers, held against what the modules import."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "tenas").rglob("*.py"))


def read_layers() -> dict[str, int]:
    """Folder or file -> number of its layer, 0 at the bottom, as the table lists them from top to bottom."""
    table = re.search(r"\| layer \|.*?\n\n", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    rows = [re.findall(r"`(tenas/[\w/.]+)`", row.split("|")[2]) for row in table.group().splitlines()[2:] if row]
    return {path: level for level, paths in enumerate(reversed(rows)) for path in paths}


LAYERS = read_layers()


def unit(path: Path) -> str:
    """The entry of the table that a module belongs to."""
    (found,) = [entry for entry in LAYERS if path.as_posix() == entry or path.as_posix().startswith(f"{entry}/")]
    return found


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
    # The package itself is just a docstring and a version.
    return found - {Path("tenas/__init__.py")}


def test_the_table_was_read():
    assert len(set(LAYERS.values())) >= 6
    assert LAYERS["tenas/cli.py"] > LAYERS["tenas/search"] > LAYERS["tenas/measures"] > LAYERS["tenas/networks"]


@pytest.mark.parametrize("path", [m for m in MODULES if m.parts[1:] != ("__init__.py",)], ids=str)
def test_every_module_imports_from_its_own_layer_or_below(path):
    above = {str(i) for i in imports(path) if LAYERS[unit(i)] > LAYERS[unit(path)]}
    assert not above


def test_the_package_itself_imports_nothing():
    """Its names are imported with their first use, and torch with the first that needs it."""
    assert not imports(Path("tenas/__init__.py"))
    names = "tenas.list_spaces(), tenas.list_measures(), tenas.list_presets(), tenas.list_sources(), tenas.search, dir(tenas)"
    code = f"import tenas; {names}; [getattr(tenas, name) for name in tenas.__all__]; tenas.measure('naswot')"
    assert loaded(code).isdisjoint({"torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy"})


def test_the_parts_of_the_package_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if path.parts[1:] != ("__init__.py",):
            graph.setdefault(unit(path), set()).update(unit(i) for i in imports(path))
    graphlib.TopologicalSorter({k: v - {k} for k, v in graph.items()}).prepare()  # raises CycleError


@pytest.mark.parametrize(
    "module",
    ["cli", "config", "data", "spaces", "settings", "provenance", "search.stages", "search.prune", "search.draw",
     "benchmark", "report", "audit", "study.stages"],
)  # fmt: skip
def test_modules_that_start_without_torch(module):
    assert loaded(f"import tenas.{module}").isdisjoint({"torch", "torchvision", "pandas", "sklearn", "matplotlib"})


def test_help_is_given_without_torch():
    code = "from tenas.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert end.code == 0"
    assert loaded(code).isdisjoint({"torch", "numpy", "scipy"})


@pytest.mark.parametrize("module", ["search.score", "retrain", "measures", "networks"])
def test_only_loading_a_data_set_imports_torchvision(module):
    assert "torch" in (names := loaded(f"import tenas.{module}"))
    assert "torchvision" not in names


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running ``code``."""
    code += "\nimport sys; print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines())
