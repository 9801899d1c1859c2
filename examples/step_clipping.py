"""Train far above the critical learning rate: plain, with gradient-norm clipping, and with topological step clipping.

    python examples/step_clipping.py

It takes about half a minute on a free core. The network is the one of ``find_lr.py``, with its momentum and cosine
schedule; each run starts from the same weights. The last lines do the same in a training loop of one's own.
"""

from __future__ import annotations

import math
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from digits import quiet
from find_lr import all_images, fresh_model, trainer
from torch import nn

import lightning_topo as lt

MULTIPLES = (0.25, 2, 16)
# Half of the default: with 0.2 this network is lost at 2 η* in some runs, and comes through at 16 η*.
BOUND = 0.1


def accuracy(model: pl.LightningModule) -> float:
    x, y = all_images().dataset.tensors
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def train(folder: str, lr: float, **options: object) -> float:
    model = fresh_model()
    model.hparams["lr"] = lr
    trainer(folder, **options).fit(model, all_images())
    return accuracy(model)


def train_without_a_trainer(lr: float, epochs: int = 5) -> tuple[float, int, float]:
    """Accuracy, clipped updates, and the largest κ of an update that was made."""
    model, data = fresh_model(), all_images()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    largest = 0.0
    x, _ = next(iter(data))
    with lt.topological_step_clipping(optimizer, model, max_criticality=BOUND, example_input=x) as clipper:
        for _ in range(epochs):
            for x, y in data:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                kappas = [update.criticality_after for update in clipper.last]
                largest = max([largest, *(kappa for kappa in kappas if not math.isnan(kappa))])
    return accuracy(model), clipper.clipped_updates, largest


def main() -> None:
    quiet()

    with TemporaryDirectory() as folder:
        result = lt.topological_lr_find(trainer(folder), fresh_model(), all_images(), update_attr=False)
        assert result is not None
        assert result.critical_lr is not None
        print(f"critical learning rate η* = {result.critical_lr:.3g}; accuracy after training at\n")
        print(f"{'':>8s} {'plain':>8s} {'norm 1.0':>9s} {'step clipping':>14s}   updates clipped")
        accuracies: dict[float, list[float]] = {}
        for multiple in MULTIPLES:
            lr = multiple * result.critical_lr
            clipping = lt.TopologicalStepClipping(max_criticality=BOUND)
            accuracies[multiple] = [
                train(folder, lr),
                train(folder, lr, gradient_clip_val=1.0),
                train(folder, lr, callbacks=[clipping]),
            ]
            plain, norm, ours = accuracies[multiple]
            counts = f"{clipping.clipped_updates} of {clipping.updates}"
            print(f"{multiple:>5g} η* {plain:8.3f} {norm:9.3f} {ours:14.3f}   {counts}")

    seen, clipped, largest = train_without_a_trainer(MULTIPLES[-1] * result.critical_lr)
    print(f"\nwithout a Trainer, {MULTIPLES[-1]:g} η*: accuracy {seen:.3f}, {clipped} clipped, κ <= {largest:.4f}")

    assert all(ours > 0.9 for *_, ours in accuracies.values())
    assert accuracies[MULTIPLES[-1]][0] < 0.5, "plain training should be lost so far above η*"
    assert largest <= BOUND


if __name__ == "__main__":
    main()
