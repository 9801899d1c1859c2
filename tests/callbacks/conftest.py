"""A small classifier on small data, in every way that a Trainer can be asked to train it."""

import inspect

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """Batches carry their own numbers, so that the order in which they came can be compared."""

    def __init__(self, make_optimizer=None, dropout=0.0):
        super().__init__()
        self.make_optimizer = make_optimizer
        self.net = nn.Sequential(
            nn.Linear(6, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(12, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        )
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].sum().item())
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        if self.make_optimizer is not None:
            return self.make_optimizer(self)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(n=96, batch_size=8, shuffle=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


class Clock(pl.Callback):
    """A batch takes one second, and measuring no time."""

    now = 0.0

    def on_train_batch_start(self, *args):
        self.now += 1

    def __call__(self):
        return self.now


class RecordingLogger(Logger):
    """Keeps what it is given; its groups are separated by a dot, unlike TensorBoard's."""

    group_separator = "."

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = "recording"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def series(self, key):
        return [(step, row[key]) for step, row in self.rows if key in row]


@pytest.fixture
def classifier():
    def make(*args, **kwargs):
        torch.manual_seed(0)
        return Classifier(*args, **kwargs)

    return make


@pytest.fixture
def data():
    return loader


@pytest.fixture
def recorder():
    return RecordingLogger()


@pytest.fixture
def weights_only():
    """Load checkpoints without unpickling objects, where Lightning can be asked to."""
    return {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}


@pytest.fixture
def trainer(tmp_path):
    """A quiet Trainer of one short run; options override."""

    def make(callbacks=(), **options):
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
        }
        return pl.Trainer(callbacks=list(callbacks), **(settings | options))

    return make
