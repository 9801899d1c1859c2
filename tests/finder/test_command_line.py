"""``python -m lightning_topo find-lr`` in projects of LightningCLI."""

import json
import sys

import pytest

from lightning_topo.__main__ import main
from lightning_topo.finder import TopologicalLRResult, topological_lr_find

pytest.importorskip("jsonargparse")
PROJECT = """
import torch, {package} as pl
from torch import nn

class Net(pl.LightningModule):
    def __init__(self, width: int = 16, lr: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
        return torch.utils.data.DataLoader(data, batch_size=8)
"""
CONFIG = """
seed_everything: 1
trainer: {{accelerator: cpu, max_epochs: 9, logger: false, enable_progress_bar: false, enable_checkpointing: false}}
{model}
ckpt_path: null
"""
NAMED = """model: {{class_path: {name}.Net, init_args: {{width: 24}}}}
data: {{class_path: {name}.Data}}"""
OPTIONS = ["--hold-steps=6", "--trial-steps=8"]
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Lightning's use of jsonargparse
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
]
pytestmark = QUIET


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    """Writes a project, whose module has a name of its own; its configuration names the classes or does not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(package="pytorch_lightning", names_classes=True):
        name = f"project_{abs(hash(request.node.name)):x}"
        (tmp_path / f"{name}.py").write_text(PROJECT.format(package=package))
        model = NAMED.format(name=name) if names_classes else "model: {width: 24}"
        (tmp_path / "config.yaml").write_text(CONFIG.format(model=model))
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("project_")]:
        del sys.modules[name]


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_finds_what_the_function_finds(project, package, tmp_path, capsys):
    pytest.importorskip(package)
    name = project(package)
    main(["find-lr", "--config", "config.yaml", "--output", "out", *OPTIONS])
    values = json.loads((tmp_path / "out" / "lr_find.json").read_text())
    found = TopologicalLRResult.from_dict(values)
    assert (tmp_path / "out" / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert values["suggestion"] == found.suggestion()
    assert repr(found) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["config.yaml", f"{name}.py"]

    lightning = pytest.importorskip(package)
    lightning.seed_everything(1, verbose=False)
    module = sys.modules[name]
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=9, logger=False, enable_progress_bar=False)
    plain = topological_lr_find(
        trainer, module.Net(24), datamodule=module.Data(), hold_steps=6, trial_steps=8, update_attr=False
    )
    assert found == plain


def test_classes_that_the_configuration_does_not_name(project, tmp_path):
    name = project(names_classes=False)
    classes = [f"--model-class={name}.Net", f"--data-class={name}.Data"]
    main(
        ["find-lr", "-c", "config.yaml", *classes, *OPTIONS, "--safety=0.5", "--model.lr=0.5", "--trainer.max_epochs=3"]
    )
    values = json.loads((tmp_path / "lr_find.json").read_text())
    assert values["suggestion"] == 0.5 * values["critical_lr"]
    assert values["share_trials"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--trial-steps=4"], "at least 5"),
        (["--safety=2"], r"number in \(0, 1\]"),
        (["--model-class=Net"], "import path"),
        (["--trainer.fast_dev_run=true"], "fast_dev_run"),
    ],
)
@pytest.mark.filterwarnings("ignore:The learning-rate search is left out")
def test_bad_input_is_told_in_a_line(project, arguments, error):
    project()
    with pytest.raises(SystemExit, match=f"python -m lightning_topo: expected .*{error}"):
        main(["find-lr", "--config=config.yaml", *OPTIONS, *arguments])


def test_neither_command_nor_configuration(capsys):
    for arguments, error in (([], "COMMAND"), (["find-lr"], "--config")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert error in capsys.readouterr().err
