"""The tutorial runs from its first cell to its last, and shows what it shows in the guide."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def _kinds(notebook: Any) -> list[set[tuple[str, ...]]]:
    """For each cell, what its outputs can be shown as; what is printed may come in several."""
    return [
        {tuple(sorted(output.get("data", output))) for output in cell.get("outputs", [])}
        for cell in notebook.cells
    ]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    shown = _kinds(notebook)
    assert sum(bool(outputs) for outputs in shown) > 6
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert _kinds(notebook) == shown
    assert (tmp_path / "runs" / "tutorial" / "report.html").exists()
