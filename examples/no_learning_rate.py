"""Train without choosing a learning rate: the same script at four rates, without and with TopologicalRateControl.

    python examples/no_learning_rate.py --log-dir runs/no_learning_rate

It takes about half a minute. A small convolutional network learns scikit-learn's digits with Adam, at rates that are
ten thousand times apart. Without the control the accuracy on digits that it never saw depends on the rate; with it,
the rate that it was given does not matter. The rate η of each update and the critical rate η* are in TensorBoard, in
one chart of the page "Custom scalars": ``tensorboard --logdir runs/no_learning_rate``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
from digits import Digits, loaders, quiet, trainer
from pytorch_lightning.loggers import TensorBoardLogger

import lightning_topo as lt

RATES = (1e-5, 1e-3, 1e-2, 1e-1)
EPOCHS = 8


def accuracy(lr: float, callbacks: list[pl.Callback], log_dir: Path, name: str) -> float:
    pl.seed_everything(0, verbose=False)
    logger = TensorBoardLogger(log_dir, name, version=f"lr={lr:g}")
    run = trainer(EPOCHS, log_dir, callbacks=callbacks, logger=logger, log_every_n_steps=5)
    run.fit(Digits(lr), *loaders())
    return float(run.callback_metrics["val/accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/no_learning_rate"))
    options = parser.parse_args()
    quiet()

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
