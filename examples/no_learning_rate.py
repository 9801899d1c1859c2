"""Train without choosing a learning rate: the same script at four rates, without and with TopologicalRateControl.

    python examples/no_learning_rate.py --log-dir runs/no_learning_rate

It takes about half a minute. A small convolutional network learns scikit-learn's digits with Adam, at rates that are
ten thousand times apart. Without the control the accuracy on digits that it never saw depends on the rate; with it,
the rate that it was given does not matter. The rate η of each update and the critical rate η* are in TensorBoard, in
one chart of the page "Custom scalars": ``tensorboard --logdir runs/no_learning_rate``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt

RATES = (1e-5, 1e-3, 1e-2, 1e-1)
EPOCHS = 8


class Digits(pl.LightningModule):
    """An ordinary module: nothing in it knows of the control."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
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
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def digits() -> tuple[DataLoader, DataLoader]:
    """Digits to train on, and a fifth of them to judge by."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    held_out = torch.arange(len(x)) % 5 == 0
    train, held = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(held, batch_size=512)


def accuracy(lr: float, callbacks: list[pl.Callback], log_dir: Path, name: str) -> float:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=callbacks,
        logger=TensorBoardLogger(log_dir, name, version=f"lr={lr:g}"),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(lr), *digits())
    return float(trainer.callback_metrics["val/accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/no_learning_rate"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # faster for so small a network, and far faster on a busy machine
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec)")

    print("learning rate    accuracy without    with TopologicalRateControl")
    plain, controlled = [], []
    for lr in RATES:
        plain.append(accuracy(lr, [], options.log_dir, "without"))
        controlled.append(accuracy(lr, [lt.TopologicalRateControl()], options.log_dir, "with"))
        print(f"{lr:<13g}    {plain[-1]:16.3f}    {controlled[-1]:27.3f}", flush=True)
    assert min(controlled) > 0.95, controlled
    assert max(controlled) - min(controlled) < 0.02, controlled
    assert min(plain) < 0.9, plain
    print(f"\nThe rates that were used, beside η*: tensorboard --logdir {options.log_dir}")


if __name__ == "__main__":
    main()
