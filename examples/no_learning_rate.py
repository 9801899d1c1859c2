"""Train without choosing a learning rate: the same script at four rates, without and with TopologicalRateControl.

    python examples/no_learning_rate.py --log-dir runs/no_learning_rate

It takes about half a minute. A small convolutional network learns scikit-learn's digits with Adam, at rates that are
ten thousand times apart. Without the control the accuracy on digits that it never saw depends on the rate; with it,
the rate that it was given does not matter. It draws ``no_learning_rate.png``: the accuracies, and the rate η and the
critical rate η* of each update. They are in TensorBoard as well, in one chart of the page "Custom scalars":
``tensorboard --logdir runs/no_learning_rate``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
from digits import Digits, loaders, quiet, trainer
from matplotlib.figure import Figure
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


def draw(plain: list[float], controlled: list[float], controls: list[lt.TopologicalRateControl], path: Path) -> None:
    """Accuracies by the rate that a run was given, and the rates at which it trained."""
    figure = Figure(figsize=(9, 3.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(RATES, plain, "o--", color="0.6", label="as given")
    left.plot(RATES, controlled, "o-", color="C0", label="with TopologicalRateControl")
    left.set(xscale="log", ylim=(0, 1.05), xlabel="learning rate given to Adam", ylabel="accuracy on digits never seen")
    left.legend(loc="lower right")
    for k, control in enumerate(controls):
        steps = [record.step for record in control.history]
        once = {"label": f"the rate η of each of the {len(controls)} runs"} if k == 0 else {}
        right.plot(steps, [record.learning_rate for record in control.history], color="C0", lw=1, **once)
        once = {"label": "the critical rate η*"} if k == 0 else {}
        right.plot(steps, [record.critical_lr for record in control.history], color="C1", lw=1, **once)
    right.set(yscale="log", xlabel="update")
    right.legend(loc="lower left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/no_learning_rate"))
    options = parser.parse_args()
    quiet()

    print("learning rate    accuracy without    with TopologicalRateControl")
    plain: list[float] = []
    controlled: list[float] = []
    controls = [lt.TopologicalRateControl() for _ in RATES]
    for lr, control in zip(RATES, controls, strict=True):
        plain.append(accuracy(lr, [], options.log_dir, "without"))
        controlled.append(accuracy(lr, [control], options.log_dir, "with"))
        print(f"{lr:<13g}    {plain[-1]:16.3f}    {controlled[-1]:27.3f}", flush=True)
    assert min(controlled) > 0.95, controlled
    assert max(controlled) - min(controlled) < 0.02, controlled
    assert min(plain) < 0.9, plain
    draw(plain, controlled, controls, options.log_dir / "no_learning_rate.png")
    print(f"\nFigure: {options.log_dir / 'no_learning_rate.png'}")
    print(f"The rates that were used, beside η*: tensorboard --logdir {options.log_dir}")


if __name__ == "__main__":
    main()
