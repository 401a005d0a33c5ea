"""The notebook of docs/ runs, and what it shows is what is committed, but for numbers that a processor may round."""

from itertools import groupby
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_steps.ipynb"
LARGEST = 300_000  # bytes


def kinds(notebook: nbformat.NotebookNode) -> list[list[tuple[str, ...]]]:
    """For each cell of code the kinds of its outputs: the name of a stream, or the types of what is displayed.

    What a cell prints arrives in pieces, whose number depends on time: neighbours of a kind count as one.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    all_kinds = [
        [(output.name,) if output.output_type == "stream" else tuple(sorted(output.data)) for output in cell.outputs]
        for cell in cells
    ]
    return [[kind for kind, _ in groupby(one)] for one in all_kinds]


@pytest.mark.slow
@pytest.mark.numeric
def test_the_notebook_runs_and_shows_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "TMPDIR"):  # not those of who runs the test
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert kinds(notebook) == kinds(committed)
    assert not any(("stderr",) in cell for cell in kinds(notebook))


def test_the_committed_notebook_is_small_and_complete() -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < LARGEST and "/tmp" not in NOTEBOOK.read_text()
