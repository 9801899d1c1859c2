"""What the examples and the documentation share: handwritten digits, a small network, and a quiet Trainer."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(pl.LightningModule):
    """A small convolutional network: an ordinary module, in which nothing knows of this package.

    Args:
        lr: Learning rate.
        normalise: Whether its first layer has a BatchNorm.
    """

    def __init__(self, lr: float = 1e-3, normalise: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            *([nn.BatchNorm2d(16)] if normalise else []),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def images() -> TensorDataset:
    """The 1,797 images of 8x8 pixels that come with scikit-learn, and their labels."""
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))


def loaders() -> tuple[DataLoader, DataLoader]:
    """Four fifths of the images to train on, and a fifth to judge by."""
    x, y = images().tensors
    held_out = torch.arange(len(x)) % 5 == 0
    train, held = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(held, batch_size=512)


def trainer(epochs: int, folder: Path | str, **options: Any) -> pl.Trainer:
    """A Trainer on the processor that draws no bars and saves nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = quiet | {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder}
    return pl.Trainer(max_epochs=epochs, **(settings | options))


def quiet() -> None:
    """One thread, which is faster for so small a network, and no advice of Lightning's on loaders."""
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|no `val_dataloader`)")
