"""The notebooks of the tutorials run, assert what they claim, and were saved with their outputs."""

import asyncio
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def kinds(book):
    """For each cell of code, what its outputs are; streams that come in pieces count once."""
    return [sorted({output.output_type for output in cell.outputs}) for cell in book.cells if cell.cell_type == "code"]


def text_of(book):
    cells = (cell for cell in book.cells if cell.cell_type == "code")
    shown = (
        output.get("text") or output.get("data", {}).get("text/plain", "") for cell in cells for output in cell.outputs
    )
    return "\n".join(shown)


def words(text):
    """A text without its numbers, which processors round differently, and without its line breaks."""
    return re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", text).split()


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestWarning")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_was_saved_with_its_outputs(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    saved = nbformat.read(FOLDER / name, as_version=4)
    run = nbformat.read(FOLDER / name, as_version=4)
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    asyncio.run(client.async_execute())  # a failed assertion in a cell ends it
    assert kinds(run) == kinds(saved)
    assert words(text_of(run)) == words(text_of(saved))
    assert "Warning" not in text_of(saved)
    assert str(Path.home()) + os.sep not in text_of(saved)
