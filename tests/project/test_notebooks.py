"""The notebooks of examples/ run, and are stored with what they print."""

from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook: nbformat.NotebookNode) -> list[set[tuple[str, ...]]]:
    """The kinds of outputs of each code cell. Numbers have other last digits on another processor, texts come in other pieces."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [{(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs} for cell in cells]


def test_a_notebook_is_stored_as_it_was_executed_from_top_to_bottom(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(bool, outputs(notebook))) >= 4
    assert path.stat().st_size < 200_000


@pytest.mark.long
def test_a_notebook_runs(path: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert outputs(notebook) == outputs(stored)
