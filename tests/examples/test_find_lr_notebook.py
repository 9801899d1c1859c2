"""The notebook of the finder: what it shows is what its cells compute, and they run."""

import base64
import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "find_lr.ipynb"


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def shown(kind):
    outputs = [output.get("data", {}) for cell in cells() for output in cell["outputs"]]
    return ["".join(data[kind]) for data in outputs if kind in data]


@pytest.mark.filterwarnings("ignore")  # as of a new user: what Lightning and its loaders advise
def test_cells_run_and_show_what_is_stored(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "rcParams", matplotlib.rcParams.copy())
    names = {"__name__": "__main__"}
    for cell in cells():
        exec("".join(cell["source"]), names)
    assert shown("text/plain")[0] == repr(names["result"])
    picture = names["result"].plot()._repr_png_()
    (stored,) = (base64.b64decode(text) for text in shown("image/png"))
    assert picture.startswith(b"\x89PNG")
    assert stored.startswith(b"\x89PNG")
    printed = next("".join(output["text"]) for cell in cells() for output in cell["outputs"] if "text" in output)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        line.split()[0] for line in printed.splitlines()
    ]
