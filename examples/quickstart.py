"""Train a small digits classifier at a rate too low, one that follows η*, and one too high; watch its neurons.

Run it with ``make demo``, or with ``python examples/quickstart.py`` where lightning-topo and scikit-learn are
installed. It takes about a minute, and writes TensorBoard logs to ``runs/quickstart``.

The 512 hidden neurons start on a sphere, so that their topology is known: one component, no loop, one void. Each run
has one monitor of each kind in its Trainer; the second also has ``TopologicalRateControl``, so that the learning rate
that its optimizer was given does not matter.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.plots import plot_neuron_cloud

LEARNING_RATES = {"too low": 0.25, "follows η*": 1.0, "too high": 30.0}
FOLLOWS = "follows η*"
N_NEURONS = 512


class Digits(pl.LightningModule):
    """64 pixels -> 512 sigmoid neurons -> 10 classes."""

    def __init__(self, lr: float):
        super().__init__()
        self.save_hyperparameters()
        self.hidden = nn.Linear(64, N_NEURONS, bias=False)
        self.readout = nn.Linear(N_NEURONS, 10, bias=False)
        start_on_a_sphere(self.hidden, self.readout)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.sigmoid(self.hidden(x)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def start_on_a_sphere(hidden: nn.Linear, readout: nn.Linear) -> None:
    """Place the neurons [W1[i, :], W2[:, i]] on a 2-sphere of radius 2 in a random subspace of three dimensions."""
    n, dimension = hidden.out_features, hidden.in_features + readout.out_features
    frame = torch.linalg.qr(torch.randn(dimension, 3)).Q
    points = 2 * nn.functional.normalize(torch.randn(n, 3)) @ frame.T
    with torch.no_grad():
        hidden.weight.copy_(points[:, : hidden.in_features])
        readout.weight.copy_(points[:, hidden.in_features :].T)


def neurons(model: Digits) -> Tensor:
    """The neuron cloud, shape (512, 74)."""
    (group,) = lt.find_neuron_groups(model, torch.zeros(2, 64))
    return group.points(model)


def digits_loaders() -> tuple[DataLoader, DataLoader]:
    """The 1,797 images of handwritten digits that come with scikit-learn, a fifth of them for validation."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    validation, training = order[:360], order[360:]
    return (
        DataLoader(TensorDataset(x[training], y[training]), batch_size=128, shuffle=True),
        DataLoader(TensorDataset(x[validation], y[validation]), batch_size=360),
    )


def train(name: str, epochs: int, log_dir: Path) -> dict[str, object]:
    """One run; returns the row of the table."""
    lr = LEARNING_RATES[name]
    pl.seed_everything(0, verbose=False)
    updates = lt.BiLipschitzMonitor(max_neurons=None, max_overhead=None)
    topology = lt.PersistenceMonitor(max_neurons=N_NEURONS // 2, every_n_train_steps=60, max_overhead=None)
    sharpness = lt.SharpnessMonitor(every_n_train_steps=20, max_overhead=None)
    control = [lt.TopologicalRateControl(every_n_train_steps=10)] if name == FOLLOWS else []
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[updates, topology, sharpness, *control],
        logger=TensorBoardLogger(log_dir.parent, name=log_dir.name, version=label(name)),
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Digits(lr)
    start = neurons(model)
    trainer.fit(model, *digits_loaders())
    return {
        "start": start,
        "end": neurons(model),
        "accuracy": trainer.callback_metrics["val/accuracy"].item(),
        "criticality": max(record.criticality for record in updates.history),
        "broken": updates.broken_updates,
        "updates": len(updates.history),
        "before": topology.history[0],
        "after": topology.history[-1],
        "certificate": updates.certificates[0],
    }


def label(name: str) -> str:
    """How a run is called in tables, figures and logs."""
    return name if name == FOLLOWS else f"η = {LEARNING_RATES[name]:g}, {name}"


def draw(rows: dict[str, dict[str, object]], path: Path) -> None:
    """The neurons of each run at its end, each in its own principal plane, in the colours of the start."""
    panels = Figure(figsize=(12.8, 4.2), dpi=100, layout="constrained").subplots(1, len(rows))
    for ax, (name, row) in zip(panels, rows.items(), strict=True):
        plot_neuron_cloud(row["end"], start=row["start"], ax=ax)
        told = f"accuracy {row['accuracy']:.2f}, {row['after'].distinct} distinct neurons"
        ax.set_title("")  # its own, in the middle
        ax.set_title(f"{label(name)}\n{told}", loc="left", fontsize="medium")
    panels[0].figure.savefig(path, bbox_inches="tight")


def print_table(rows: dict[str, dict[str, object]]) -> None:
    """What each run did to its neurons: their updates, their topology, how many are left, and what they say."""
    columns = "learning rate", "accuracy", "largest κ", "b0 b1 b2", "distinct", "dormant", "effective rank"
    widths = 20, 10, 11, 18, 10, 9, 16
    print("\n" + "".join(f"{title:>{width}}" for title, width in zip(columns, widths, strict=True)))
    start = next(iter(rows.values()))["before"]
    lines = {"(at the start)": ("", "", start)}
    lines |= {
        label(name): (f"{row['accuracy']:.3f}", f"{row['criticality']:.3g}", row["after"]) for name, row in rows.items()
    }
    for name, (accuracy, criticality, record) in lines.items():
        told = f"{record.distinct}", f"{record.dormant:.1%}", f"{record.effective_rank:.1f}"
        cells = name, accuracy, criticality, f"{record.betti}", *told
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    print()
    for name, row in rows.items():
        print(f"{label(name)}: {row['certificate']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # faster for so small a network, and far faster on a busy machine
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*treespec, LeafSpec.*")

    rows = {name: train(name, options.epochs, options.log_dir) for name in LEARNING_RATES}

    print_table(rows)
    draw(rows, options.log_dir / "neurons.png")
    print(f"\nThe neurons at the end: {options.log_dir / 'neurons.png'}")
    print(f"See it in TensorBoard:  tensorboard --logdir {options.log_dir}")

    low, follows, high = rows.values()
    assert low["broken"] == follows["broken"] == 0, "below η* every update is one-to-one on the neurons"
    assert low["certificate"].excludes_clones, "and so none have become clones"
    before, after = low["before"], low["after"]
    assert (before.betti, before.distinct) == (after.betti, after.distinct), "where little moves the topology is kept"
    assert follows["before"].distinct == follows["after"].distinct, "and all neurons are left"
    assert high["broken"] > 0, "above η* some update is not one-to-one"
    assert low["accuracy"] < follows["accuracy"] > high["accuracy"], "the rate that follows η* learns best"


if __name__ == "__main__":
    main()
