"""Train above the critical learning rate, where units merge, and make the network as small as what is left of it.

    python examples/merge_neurons.py

It takes about half a minute on a free core. A wide perceptron learns scikit-learn's digits twice from the same weights,
with weight decay and a cosine schedule: at a quarter of its critical learning rate η* and above it. Above, updates are
not one-to-one on the neurons: many stop responding, weight decay draws them to one point, and there they coincide.
``lt.merge_neurons`` then leaves one of them, and the smaller network classifies the test digits as the large one does.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt

# Distance of two units that count as one, as a share of the root mean square of what the units of the layer hold.
TOLERANCE = 0.01


class Perceptron(pl.LightningModule):
    def __init__(self, lr: float, width: int, epochs: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], weight_decay=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams["epochs"])
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def digits() -> tuple[DataLoader, TensorDataset]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    batches = DataLoader(
        TensorDataset(x[train], y[train]), batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    return batches, TensorDataset(x[test], y[test])


def fresh_model(lr: float, options: argparse.Namespace) -> Perceptron:
    torch.manual_seed(0)
    return Perceptron(lr, options.width, options.epochs)


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    x, y = test.tensors
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def trainer(folder: str, epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def trained(folder: str, lr: float, options: argparse.Namespace) -> tuple[Perceptron, int]:
    """A model after training at ``lr``, and how many of its updates were not one-to-one on the neurons."""
    model = fresh_model(lr, options)
    batches, _ = digits()
    fit = trainer(folder, options.epochs, lt.BiLipschitzMonitor(max_overhead=None))
    fit.fit(model, batches)
    return model, int(fit.callback_metrics["bilipschitz/broken_updates"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="units of the hidden layer")
    parser.add_argument("--epochs", type=int, default=70)
    parser.add_argument("--above", type=float, default=1.25, help="the high rate, in units of η*")
    options = parser.parse_args()
    torch.set_num_threads(1)  # faster for so small a network
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec)")

    batches, test = digits()
    example = test.tensors[0][:64]
    with TemporaryDirectory() as folder:
        found = lt.topological_lr_find(
            trainer(folder, options.epochs), fresh_model(0.1, options), batches, update_attr=False, safety=0.25
        )
        assert found is not None
        assert found.critical_lr is not None
        print(f"critical learning rate η* = {found.critical_lr:.3g}\n")
        runs = {share: trained(folder, share * found.critical_lr, options) for share in (0.25, options.above)}

    left = {}
    for share, (model, broken) in runs.items():
        before = accuracy(model, test)
        report = lt.merge_neurons(model, example_input=example, tolerance=TOLERANCE)
        after = accuracy(model, test)
        left[share] = report.groups[0].units_after
        print(f"trained at {share:g} η*: {broken} updates not one-to-one, accuracy {before:.3f}, merged {after:.3f}")
        print("  " + str(report).replace("\n", "\n  ") + "\n")
        assert abs(after - before) <= 0.003, "merging may change the class of one digit in 397 at most"

    assert left[0.25] == options.width, "at a quarter of η* all units stay different"
    assert left[options.above] < options.width, "above η* some units become one"
    assert runs[options.above][1] > 0 == runs[0.25][1], "only above η* updates are not one-to-one"


if __name__ == "__main__":
    main()
