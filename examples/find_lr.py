"""Find the critical learning rate of a digits classifier, train below it, and compare with Lightning's own finder.

    python examples/find_lr.py --output runs/find_lr

It takes less than a minute and writes ``lr_find.png``: the largest criticality of each trial, and its losses. The
networks start from the same weights and see the same batches; only the learning rate differs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import digits
import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader

import lightning_topo as lt

EPOCHS = 15


class WithMomentum(digits.Digits):
    """The examples' network with BatchNorm, trained by SGD with momentum under a cosine schedule."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__(lr, normalise=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)}


def all_images() -> DataLoader:
    return DataLoader(digits.images(), batch_size=64, shuffle=True)


def trainer(folder: Path | str, **options: Any) -> pl.Trainer:
    return digits.trainer(EPOCHS, folder, **options)


def fresh_model() -> WithMomentum:
    pl.seed_everything(0, verbose=False)
    return WithMomentum()


def final_loss(folder: Path, lr: float | None) -> float:
    """Mean loss of the last epoch; NaN where training diverged, or no rate was suggested."""
    model = fresh_model()
    if lr is None:
        return math.nan
    model.hparams["lr"] = lr
    run = trainer(folder)
    run.fit(model, all_images())
    return float(run.callback_metrics["train/loss_epoch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/find_lr"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    digits.quiet()

    model = fresh_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = lt.topological_lr_find(trainer(folder), model, all_images())
    assert result is not None
    assert result.status == "found"
    assert model.hparams["lr"] == result.suggestion()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "the search left a trace"
    )
    result.plot().figure.savefig(folder / "lr_find.png")

    theirs = Tuner(trainer(folder)).lr_find(fresh_model(), all_images(), update_attr=False)
    assert theirs is not None
    rates = {
        "critical rate η*": result.critical_lr,
        "our suggestion": result.suggestion(),
        "Lightning's suggestion": theirs.suggestion(),
    }
    losses = {name: final_loss(folder, rate) for name, rate in rates.items()}

    print(
        f"η* lies between {result.bracket[0]:.3g} and {result.bracket[1]:.3g}: {len(result.trials)} trials of", end=" "
    )
    print(f"{result.total_steps} optimizer steps; Lightning's ramp took {len(theirs.results['loss'])}.")
    for name, rate in rates.items():
        shown = "none" if rate is None else f"{rate:.3g}"
        print(f"  {name:24s} {shown:>10s}   loss after {EPOCHS} epochs {losses[name]:.4f}")
    print(f"Figure: {folder / 'lr_find.png'}")

    assert losses["our suggestion"] < 0.1, "training at the suggestion should have learned the digits"
    assert not losses["Lightning's suggestion"] < losses["our suggestion"]


if __name__ == "__main__":
    main()
