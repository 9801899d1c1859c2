"""A small classifier on small data, which the conftests give to the tests of callbacks and of the finder."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """Remembers the batches that it was shown: each is known by its sum, and so is the order in which they came.

    Args:
        make_optimizer: Called with the model.
        dropout: Share of the first hidden units.
    """

    def __init__(self, make_optimizer, dropout=0.0):
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
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].sum().item())
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return self.make_optimizer(self)


def data(n=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def loader(n=96, batch_size=8, shuffle=True, **kwargs):
    return DataLoader(data(n), batch_size=batch_size, shuffle=shuffle, **kwargs)


def trainer(folder, **options):
    """A quiet Trainer of one short run."""
    quiet = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "max_epochs": 2, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(quiet | options))
