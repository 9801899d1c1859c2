"""LightningCLI, and the loggers that come with Lightning."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

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
    kappas = [event.value for event in events.Scalars("bilipschitz/criticality")]
    logarithms = [event.value for event in events.Scalars("bilipschitz/log10_criticality")]
    assert logarithms == pytest.approx([math.log10(kappa) for kappa in kappas], rel=1e-5)
    assert "lightning_topo/overview" in tags["images"]
    for kind in ("diagram", "barcode", "cloud"):
        # Measured before the first update and after every third: figures at measurements 1, 2, 4, 8 and the last.
        assert [image.step for image in events.Images(f"topology/net.0/{kind}")] == [0, 2, 8, 20, 23]

    written = events.Tensors("custom_scalars__config__")[-1]  # the one that TensorBoard shows
    layout = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    criticality, rates, stretch, *_ = charts.values()
    assert criticality == [rf"^bilipschitz/net\.{n}/log10_criticality$" for n in (0, 4)]
    sections = ("bilipschitz/log10_learning_rate", "bilipschitz/log10_critical_lr", "sharpness/log10_critical_lr")
    assert rates == [f"^{tag}$" for tag in sections]
    assert stretch == ["^bilipschitz/squeeze$", "^bilipschitz/stretch$"]
    assert len([title for title in charts if "learning rate" in title]) == 1
    moved = {
        (group, k)
        for group in ("net.0", "net.4")
        for k in range(3)
        if len({record.betti[k] for record in monitors[1].history if record.group == group}) > 1
    }
    drawn = {tag for title, tags in charts.items() if "Betti" in title for tag in tags}
    assert drawn == {f"^topology/{group.replace('.', chr(92) + '.')}/betti_{k}$" for group, k in moved}


def test_sharpness_alone_has_a_chart_of_its_rates(classifier, trainer, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    monitor = lt.SharpnessMonitor(every_n_train_steps=3, max_overhead=None, method="critical")
    trainer([monitor], logger=logger, max_epochs=1).fit(classifier(), data())
    events = EventAccumulator(logger.log_dir).Reload()
    (tags,) = monitor.charts().values()
    assert tags == ["sharpness/log10_learning_rate", "sharpness/log10_critical_lr"]
    rates, critical = ([event.value for event in events.Scalars(tag)] for tag in tags)
    assert rates == pytest.approx([math.log10(0.1)] * len(monitor.history))
    positive = [record.critical_lr for record in monitor.history if record.critical_lr > 0]
    assert critical == pytest.approx([math.log10(rate) for rate in positive], rel=1e-5)


def test_rates_that_are_set_are_drawn_once_in_the_chart_of_rates(classifier, trainer, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    callbacks = [lt.SharpnessMonitor(max_overhead=None), lt.BiLipschitzMonitor(), lt.TopologicalRateControl()]
    trainer(callbacks, logger=logger, log_every_n_steps=2, max_epochs=1).fit(classifier(), data())
    events = EventAccumulator(logger.log_dir).Reload()
    written = events.Tensors("custom_scalars__config__")[-1]
    layout = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])
    (rates,) = [tuple(c.multiline.tag) for part in layout.category for c in part.chart if "log10 of the l" in c.title]
    tags = "control/log10_learning_rate", "control/log10_critical_lr", "sharpness/log10_critical_lr"
    assert rates == tuple(f"^{tag}$" for tag in tags)
    logged = [event.value for event in events.Scalars(tags[0])]
    positive = [record.learning_rate for record in callbacks[-1].history if record.learning_rate > 0]
    assert logged == pytest.approx([math.log10(rate) for rate in positive], rel=1e-5)


def deep(n_hidden):
    """A perceptron with some hidden layers, each a neuron group."""
    layers = [(torch.nn.Linear(6, 6), torch.nn.Tanh()) for _ in range(n_hidden)]
    return torch.nn.Sequential(*(part for pair in layers for part in pair), torch.nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("n_hidden", "per_group", "shown"),
    [(8, "auto", True), (9, "auto", False), (9, True, True), (2, False, False)],
)
def test_figures_of_groups_are_shown_up_to_eight_of_them(
    n_hidden, per_group, shown, classifier, trainer, data, recorder, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = pl.loggers.TensorBoardLogger(tmp_path)
    module = classifier()
    module.net = deep(n_hidden)
    monitor = lt.BiLipschitzMonitor(max_overhead=None, per_group=per_group, figures=False)
    made = trainer([monitor], logger=[recorder, board], max_steps=3)
    made.fit(module, data())
    assert bool(recorder.series("bilipschitz.net.0.criticality")) is shown
    assert len(recorder.series("bilipschitz.criticality")) == 3
    assert len(recorder.series("bilipschitz.median_criticality")) == 3
    assert "bilipschitz/net.0/criticality" in made.callback_metrics
    assert len({record.group for record in monitor.history}) == n_hidden
    tags = EventAccumulator(board.log_dir).Reload().Tags()["scalars"]
    of_groups = [tag for tag in tags if tag.startswith("bilipschitz/net.")]
    assert len(of_groups) == (7 * n_hidden if shown else 0)
    # Amid those of groups, figures over all groups have a second tag in the section that comes first.
    assert ("all_groups/bilipschitz_criticality" in tags) is shown
    assert not shown or min(tags).startswith("all_groups/")


@pytest.mark.parametrize("per_group", [1, None, "yes"])
def test_per_group_is_checked(per_group):
    with pytest.raises(ValueError, match='per_group must be True, False or "auto"'):
        lt.BiLipschitzMonitor(per_group=per_group)


def test_example_of_the_command_line(tmp_path):
    """Class names alone, in YAML and on the command line."""
    pytest.importorskip("jsonargparse")
    folder = Path(__file__).parents[2] / "examples" / "cli"
    command = [sys.executable, "-W", "ignore", str(folder / "train.py"), "fit", "--config", str(folder / "config.yaml")]
    more = ["--trainer.callbacks+=TopologicalStepClipping", "--trainer.callbacks.max_criticality=0.3"]
    # Where the package is not installed it is found beside the tests.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 80 that were made" in done.stderr
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "bilipschitz/criticality" in metrics.read_text()
    assert list(metrics.parent.rglob("overview/*.png"))


def test_several_loggers_get_the_same(classifier, trainer, data, tmp_path, recorder):
    loggers = [pl.loggers.CSVLogger(tmp_path), pl.loggers.TensorBoardLogger(tmp_path), recorder]
    trainer([lt.BiLipschitzMonitor(max_overhead=None)], logger=loggers, max_epochs=1).fit(classifier(), data())
    assert len(recorder.series("bilipschitz.net.0.lower")) == 12
