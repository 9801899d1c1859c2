"""A small classifier on small data, in every way that a Trainer can be asked to train it."""

import inspect

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger

from .. import small
from ..small import loader


class Classifier(small.Classifier):
    """Logs a validation loss, and is trained by SGD where nothing else is asked for."""

    def __init__(self, make_optimizer=None, dropout=0.0):
        super().__init__(make_optimizer or (lambda model: torch.optim.SGD(model.parameters(), lr=0.1)), dropout)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


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
        return small.trainer(tmp_path, **({"callbacks": list(callbacks), "log_every_n_steps": 1} | options))

    return make
