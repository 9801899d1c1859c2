"""In a notebook: progress bars, the verdict, and figures as the last value of a cell."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

WIDGET = "application/vnd.jupyter.widget-view+json"  # bars where ipywidgets is installed
FIT = """
import warnings; warnings.simplefilter("ignore")
import torch, pytorch_lightning as pl, lightning_topo as lt
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.lr = 0.1
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
data = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(torch.randn(96, 6), torch.randint(3, (96,))), batch_size=8)
options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
monitor = lt.BiLipschitzMonitor(max_overhead=None)
trainer = pl.Trainer(max_epochs=2, callbacks=[monitor, pl.callbacks.TQDMProgressBar()], **options)
trainer.fit(Module(), data)
"""
SEARCH = """
result = lt.topological_lr_find(pl.Trainer(max_epochs=1, **options), Module(), data, hold_steps=5)
result.plot()
"""


# In a process of its own: the client leaves sockets to the garbage collector.
RUN = """
import json, sys
import nbclient, nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

cells = [nbformat.v4.new_code_cell(cell) for cell in json.loads(sys.argv[1])]
notebook = nbformat.v4.new_notebook(cells=cells)
manager = AsyncKernelManager()
manager._kernel_spec = KernelSpec(
    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="test", language="python"
)
nbclient.NotebookClient(notebook, km=manager, timeout=200).execute()
with open("executed.ipynb", "w", encoding="utf-8") as file:
    nbformat.write(notebook, file)
"""


def texts(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def types(cell):
    return {kind for output in cell["outputs"] for kind in output.get("data", {})}


def test_bars_verdict_and_figures(tmp_path):
    cells = [FIT, "monitor.summary()", "monitor.plot()", SEARCH, "lt.report(trainer, 'report.html')"]
    # Where the package is not installed it is found beside the tests.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(cells)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    executed = json.loads((tmp_path / "executed.ipynb").read_text(encoding="utf-8"))
    fit, summary, plot, search, _ = executed["cells"]
    assert "Epoch 1: 100%" in texts(fit) or WIDGET in types(fit)
    assert "Critical learning rate" in texts(search) or WIDGET in types(search)
    assert "Largest criticality: κ = " in texts(fit)
    assert "".join(summary["outputs"][0]["data"]["text/plain"]).startswith("Largest criticality: κ = ")
    assert "image/png" in types(plot)
    assert "image/png" in types(search)
    assert (tmp_path / "report.html").stat().st_size > 10_000
