"""LightningCLI, and the loggers that come with Lightning."""

import csv

import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's use of jsonargparse
@pytest.mark.parametrize("import_name", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_cli(import_name, tmp_path, data, monkeypatch):
    cli = pytest.importorskip(f"{import_name}.cli")
    base = pytest.importorskip(import_name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])

    class Module(base.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def train_dataloader(self):
            return data()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    arguments = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "lightning_topo.BiLipschitzMonitor",
                    "init_args": {"groups": ["net.*"], "max_overhead": None},
                },
                {
                    "class_path": "lightning_topo.PersistenceMonitor",
                    "init_args": {"groups": "net.0", "tolerance": 0.1, "max_overhead": None},
                },
                {
                    "class_path": "lightning_topo.SharpnessMonitor",
                    "init_args": {"every_n_train_steps": 3, "max_overhead": None},
                },
                {"class_path": "lightning_topo.TopologicalStepClipping", "init_args": {"max_criticality": 0.01}},
            ],
        }
    }
    made = cli.LightningCLI(Module, args=arguments, run=False, seed_everything_default=1)
    made.trainer.fit(made.model)
    bi_lipschitz, topology, sharpness, clipping = made.trainer.callbacks[:4]
    assert len(bi_lipschitz.history) == 12
    assert max(record.criticality for record in bi_lipschitz.history) <= 0.01
    assert (clipping.updates, clipping.max_criticality) == (12, 0.01)
    assert (topology.groups, topology.tolerance) == ("net.0", 0.1)
    assert topology.history
    assert sharpness.history


def test_csv_logger(classifier, trainer, data, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor, lt.PersistenceMonitor(max_overhead=None)], logger=logger).fit(classifier(), data())
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    written = [float(row["bilipschitz/net.0/criticality"]) for row in rows if row["bilipschitz/net.0/criticality"]]
    assert written == pytest.approx([r.criticality for r in monitor.history if r.group == "net.0"])
    assert any(row["topology/net.4/betti_0"] for row in rows)


def test_tensorboard_has_scalars_figures_and_one_layout(classifier, trainer, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    monitors = [
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=3),
        lt.SharpnessMonitor(max_overhead=None),
    ]
    trainer(monitors, logger=logger).fit(classifier(), data())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert "bilipschitz/net.0/critical_lr" in tags["scalars"]
    assert "topology/net.4/betti_2" in tags["scalars"]
    assert "sharpness/lambda_max" in tags["scalars"]
    for kind in ("diagram", "barcode", "cloud"):
        # Measured before the first update and after every third: figures at measurements 1, 2, 4, 8 and the last.
        assert [image.step for image in events.Images(f"topology/net.0/{kind}")] == [0, 2, 8, 20, 23]

    (written,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["net.0: η and η*"] == [r"^bilipschitz/net\.0/learning_rate$", r"^bilipschitz/net\.0/critical_lr$"]
    assert charts["net.4: lower and upper constant"] == [r"^bilipschitz/net\.4/lower$", r"^bilipschitz/net\.4/upper$"]
    assert len(charts["net.0: Betti numbers"]) == 3
    assert "inverse sharpness" in charts


def test_several_loggers_get_the_same(classifier, trainer, data, tmp_path, recorder):
    loggers = [pl.loggers.CSVLogger(tmp_path), pl.loggers.TensorBoardLogger(tmp_path), recorder]
    trainer([lt.BiLipschitzMonitor(max_overhead=None)], logger=loggers, max_epochs=1).fit(classifier(), data())
    assert len(recorder.series("bilipschitz.net.0.lower")) == 12
